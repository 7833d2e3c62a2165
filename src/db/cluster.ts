import type { Logger, Metrics } from '../core/telemetry.js';
import type { Line } from './line.js';
import { codeOf } from './refusal.js';
import type { Server } from './servers.js';

/** Why `tutti.meet` refuses a transaction, by its SQLSTATE. */
const REFUSALS = { '57TU1': 'standby', '57TU2': 'old_timeline', '57TU3': 'other_log' } as const;
/** Read-only, starting up, shutting down: nothing to be had from this server now, perhaps from another one. */
const ELSEWHERE = new Set(['25006', '57P01', '57P02', '57P03']);

const TELL_EVERY_MS = 60_000;

/** What became of the epochs when the database was found to be another one. */
export interface Settled {
  from: string;
  to: string;
  epochs: 'kept' | 'advanced';
}

export interface ClusterDeps {
  /** Decides on the epochs of the log that is met now; `undefined` where that is done. See {@link settle}. */
  settle: () => Promise<Settled | undefined>;
  metrics: Metrics;
  log: Logger;
}

/**
 * Which of the servers is the primary, and whether its log is the one the epochs belong to, as this process knows it.
 * Every transaction asks the server that runs it (`tutti.meet`), so that this holds whatever is between the two.
 */
export class Cluster {
  readonly #deps: ClusterDeps;
  #known: string | null = null;
  #timeline = 0;
  #settling: Promise<void> | undefined;
  /** When it was last told of a server and reason, by the monotonic clock. */
  readonly #told = new Map<string, number>();

  constructor(deps: ClusterDeps) {
    this.#deps = deps;
    deps.metrics.gauge('database_timeline', () => this.#timeline);
  }

  /** The newest identity seen: what a server on an older timeline is refused by. */
  get known(): string | null {
    return this.#known;
  }

  /** A server that serves is this one. */
  saw(identity: string): void {
    if (identity === this.#known) return;
    const before = partsOf(this.#known);
    const now = partsOf(identity);
    if (before.system === now.system && now.timeline < before.timeline) return;
    this.#known = identity;
    this.#timeline = now.timeline;
  }

  /**
   * Does what there is to do about work on `line` that failed: leaves a server that may not serve, or decides on the
   * epochs of a log that is another one than before.
   * @returns whether the work was refused before it did anything and may succeed now.
   */
  async heed(error: unknown, line: Line): Promise<boolean> {
    const code = codeOf(error) ?? '';
    if (ELSEWHERE.has(code)) line.refuse();
    const reason = REFUSALS[code as keyof typeof REFUSALS];
    if (reason === undefined) return false;
    this.#deps.metrics.add('database_refusals', { reason });
    if (reason === 'other_log') await this.settle().catch(() => undefined);
    else this.#tell(reason, line.refuse(), error);
    return true;
  }

  /**
   * Decides on the epochs of the log that is met, if it is another one than before; one decision at a time.
   * @throws what the database throws.
   */
  settle(): Promise<void> {
    this.#settling ??= this.#settle().finally(() => {
      this.#settling = undefined;
    });
    return this.#settling;
  }

  async #settle(): Promise<void> {
    const { log, metrics } = this.#deps;
    try {
      const settled = await this.#deps.settle();
      if (!settled) return;
      metrics.add('database_changes', { epochs: settled.epochs });
      log.warn({ ...settled }, `The database is another one than before; the epochs were ${settled.epochs}`);
      this.saw(settled.to);
    } catch (err) {
      log.error({ err }, 'The database is another one than before, and its epochs could not be decided on');
      throw err;
    }
  }

  /** Once a minute for each server and reason, not for every connection that tries it. */
  #tell(reason: string, server: Server | undefined, err: unknown): void {
    const what = `${reason} ${server?.host}:${server?.port}`;
    const now = performance.now();
    if (now - (this.#told.get(what) ?? Number.NEGATIVE_INFINITY) < TELL_EVERY_MS) return;
    this.#told.set(what, now);
    this.#deps.log.warn({ reason, ...server, err }, 'A server of DATABASE_URL may not serve');
  }
}

function partsOf(identity: string | null): { system: string; timeline: number } {
  const [system = '', timeline] = identity?.split('/') ?? [];
  return { system, timeline: Number(timeline ?? 0) };
}
