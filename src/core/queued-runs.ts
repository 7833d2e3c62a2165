import { type Clock, every } from './clock.js';
import type { Metrics } from './telemetry.js';

/** Runs that wait for a worker, of all tenants. */
export interface Queued {
  count: number;
  /** How long the one that waits longest has waited, in ms; 0 where none does. */
  oldestMs: number;
}

export interface QueuedRunsDeps {
  /** Asks the database. */
  queued: () => Promise<Queued>;
  metrics: Metrics;
  clock: Clock;
}

/** How often the queue is looked at, in ms. */
const SAMPLE_MS = 5000;

/**
 * Exports the queue of runs, looked at every {@link SAMPLE_MS} whoever scrapes how often. Where the database is away the
 * numbers are the last ones known.
 */
export class QueuedRuns {
  readonly #deps: QueuedRunsDeps;
  #seen: Queued = { count: 0, oldestMs: 0 };
  #looking = false;
  #stop: (() => void) | undefined;

  constructor(deps: QueuedRunsDeps) {
    this.#deps = deps;
    deps.metrics.gauge('runs_queued', () => this.#seen.count);
    deps.metrics.gauge('runs_queued_oldest_seconds', () => this.#seen.oldestMs / 1000);
  }

  /** Looks now, and from now on. */
  start(): void {
    this.#stop = every(this.#deps.clock, SAMPLE_MS, () => void this.#look());
    void this.#look();
  }

  stop(): void {
    this.#stop?.();
  }

  /** One look at a time: a database that is slow gets no more of them. */
  async #look(): Promise<void> {
    if (this.#looking) return;
    this.#looking = true;
    try {
      this.#seen = await this.#deps.queued();
    } catch {
      // Others tell that the database is away.
    } finally {
      this.#looking = false;
    }
  }
}
