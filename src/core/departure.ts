/** How often some of them are told, in ms. */
const EVERY_MS = 50;
/** How many are told in a second where the time allows: the other gateways get them at this pace. */
const PER_SECOND = 500;
/** Longest pause a reader is asked to make before it comes back, in ms: it is away for that long. */
const PAUSE_MAX_MS = 1000;

/**
 * Tells all to leave, evenly over a time that grows with their number up to `withinMs`. Who was not told yet is served as
 * before, so a long time costs nobody anything. Resolves when all were told.
 */
export async function spread<T>(all: Iterable<T>, withinMs: number, tell: (one: T) => void): Promise<void> {
  const leaving = [...all];
  const takesMs = Math.min(withinMs, (leaving.length / PER_SECOND) * 1000);
  const perTurn = Math.ceil(leaving.length / Math.max(1, Math.floor(takesMs / EVERY_MS)));
  for (let at = 0; at < leaving.length; at += perTurn) {
    if (at > 0) await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    for (const one of leaving.slice(at, at + perTurn)) tell(one);
  }
}

/** A pause of its own for each reader, in ms: those told in one turn do not come back in one turn. */
export const pauseBeforeReturn = (): number => Math.floor(Math.random() * PAUSE_MAX_MS);
