/** A simulation of one seed. `killAt`: kills the gateway that makes this crossing. Resolves with the number of crossings. */
type Simulate = (seed: number, killAt?: number) => Promise<number>;

const given = (name: string): number | undefined => {
  const value = process.env[name];
  return value === undefined ? undefined : Number(value);
};

const first = given('SIM_SEED');
const crossing = given('SIM_CROSSING');

/**
 * Simulates `count` seeds from 1 on, or as the environment says: SIM_SEEDS of them, or SIM_SEED alone.
 * @throws Error at the first seed that fails, with the command that replays it.
 */
export async function eachSeed(file: string, count: number, simulate: Simulate): Promise<void> {
  const from = first ?? 1;
  const seeds = given('SIM_SEEDS') ?? (first === undefined ? count : 1);
  for (let seed = from; seed < from + seeds; seed += 1) {
    await simulate(seed).catch((cause) => fail(cause, file, `SIM_SEED=${seed}`));
  }
}

/**
 * Lives `count` short lives again and again: each time the gateway dies that makes the next crossing. SIM_SEED and
 * SIM_CROSSING make it one life, or one death.
 * @throws Error as {@link eachSeed}.
 */
export async function eachCrossing(file: string, count: number, simulate: Simulate): Promise<void> {
  const from = first ?? 1;
  const lives = first === undefined ? count : 1;
  for (let seed = from; seed < from + lives; seed += 1) {
    const crossings = await simulate(seed, 0).catch((cause) => fail(cause, file, `SIM_SEED=${seed} SIM_CROSSING=0`));
    for (let at = crossing ?? 1; at <= (crossing ?? crossings); at += 1) {
      await simulate(seed, at).catch((cause) => fail(cause, file, `SIM_SEED=${seed} SIM_CROSSING=${at}`));
    }
  }
}

function fail(cause: unknown, file: string, which: string): never {
  const what = cause instanceof Error ? cause.message : String(cause);
  throw new Error(`${what}\n${which.toLowerCase()}; again: ${which} npx vitest run ${file}`, { cause });
}
