import { asTuttiError, TuttiError } from '../errors.js';
import type { Clock } from './clock.js';
import type { RunStore, Segment } from './run-store.js';
import type { RunWriter } from './run-writer.js';
import type { Logger, Metrics } from './telemetry.js';

/** Pieces in one statement. */
const BATCH_MAX = 500;
const RETRY_MIN_MS = 100;
const RETRY_MAX_MS = 1000;

/**
 * Commits the output of all runs of a gateway together: one statement at a time, with every run that has something
 * due. What the store does not take stays with its writer and is tried again.
 */
export class RunCommits {
  readonly #deps: { store: RunStore; metrics: Metrics; log: Logger; leaseMs: number; clock: Clock };
  readonly #writers: () => Iterable<RunWriter>;
  readonly #settled: (writer: RunWriter) => void;
  readonly #busy = new Set<RunWriter>();
  #running = false;
  #waiting: ((problem: TuttiError | undefined) => void)[] = [];
  #failures = 0;
  #cancelRetry: (() => void) | undefined;

  /** `settled` is called for each writer after the store said something of it. */
  constructor(
    deps: { store: RunStore; metrics: Metrics; log: Logger; leaseMs: number; clock: Clock },
    writers: () => Iterable<RunWriter>,
    settled: (writer: RunWriter) => void,
  ) {
    this.#deps = deps;
    this.#writers = writers;
    this.#settled = settled;
  }

  /** Commits what is due, unless that is under way or the store has just refused it. */
  poke(): void {
    if (this.#running || this.#cancelRetry) return;
    this.#running = true;
    void this.#run();
  }

  /** Makes everything due: what came since the last time is committed with the next statement. */
  all(): void {
    for (const writer of this.#writers()) if (writer.status === 'open' && writer.bytes > 0) writer.due = true;
    this.poke();
  }

  /**
   * Resolves after the next statement.
   * @throws TuttiError `log_unavailable` where it failed.
   */
  async next(): Promise<void> {
    const problem = await new Promise<TuttiError | undefined>((resolve) => {
      this.#waiting.push(resolve);
      this.poke();
    });
    if (problem) throw problem;
  }

  /** Resolves when no statement with this writer's output is under way. */
  async idle(writer: RunWriter): Promise<void> {
    while (this.#busy.has(writer)) await this.next().catch(() => undefined);
  }

  close(): void {
    this.#cancelRetry?.();
    this.#tell(new TuttiError('draining', 'This gateway is leaving.'));
  }

  async #run(): Promise<void> {
    // What comes in this turn of the loop goes along.
    await Promise.resolve();
    for (;;) {
      const batch: { writer: RunWriter; segment: Segment }[] = [];
      for (const writer of this.#writers()) {
        if (!writer.due || writer.status !== 'open' || batch.length >= BATCH_MAX) continue;
        writer.due = false;
        const segment = writer.segment();
        if (segment) batch.push({ writer, segment });
      }
      if (batch.length === 0) break;
      if (!(await this.#commit(batch))) break;
    }
    // In one step, so that nobody begins to wait between the two.
    this.#running = false;
    if (!this.#cancelRetry) this.#tell(undefined);
  }

  async #commit(batch: { writer: RunWriter; segment: Segment }[]): Promise<boolean> {
    const { store, metrics, log, leaseMs, clock } = this.#deps;
    const sent = clock.monotonic();
    for (const { writer } of batch) this.#busy.add(writer);
    let problem: TuttiError | undefined;
    try {
      const results = await store.commit(
        batch.map(({ segment }) => segment),
        leaseMs,
      );
      metrics.observe('run_commit', (clock.monotonic() - sent) / 1000, {});
      for (const [at, { writer, segment }] of batch.entries()) {
        const result = results[at];
        if (!result || !(writer.status === 'open' || writer.status === 'sealed')) continue;
        writer.settle(result, segment.n, sent + leaseMs);
        this.#settled(writer);
      }
      this.#failures = 0;
    } catch (error) {
      problem = asTuttiError(error);
      for (const { writer } of batch) if (writer.status === 'open') writer.due = true;
      const wait = Math.min(RETRY_MAX_MS, RETRY_MIN_MS * 2 ** this.#failures++);
      log.warn({ err: error, runs: batch.length }, 'Run output could not be committed; trying again.');
      this.#cancelRetry = clock.after(wait, () => {
        this.#cancelRetry = undefined;
        this.poke();
      });
    } finally {
      for (const { writer } of batch) this.#busy.delete(writer);
    }
    this.#tell(problem);
    return problem === undefined;
  }

  #tell(problem: TuttiError | undefined): void {
    for (const resolve of this.#waiting.splice(0)) resolve(problem);
  }
}
