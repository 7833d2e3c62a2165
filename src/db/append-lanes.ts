import { setTimeout as sleep } from 'node:timers/promises';
import type { Append, Appended } from '../core/log.js';
import type { Logger, Metrics } from '../core/telemetry.js';
import { TuttiError } from '../errors.js';
import type { Outcome } from './append-batch.js';
import { AppendQueue, type Batch, type QueueLimits, type Waiting } from './append-queue.js';
import { codeOf, isDataError } from './refusal.js';

export interface AppendLimits extends QueueLimits {
  /** Events waiting in all lanes before appends are refused with `overloaded`. */
  queueMax: number;
  /** Length of the events waiting in all lanes, in UTF-16 units, before appends are refused likewise. */
  queueBytes: number;
  /** How long an event may wait for its commit, in ms. */
  timeoutMs: number;
}

/** Commits a batch over one connection: rejects when nothing, or nobody knows what, was committed. */
export type Commit = (events: readonly Append[]) => Promise<Outcome[]>;

/** Part of the queue one tenant may fill. */
const TENANT_SHARE = 0.75;
const BACKOFF_MIN_MS = 25;
const BACKOFF_MAX_MS = 1000;
/** A failed commit says nothing of now after so long without another attempt, in ms: nobody publishes. */
const FAILURE_KEPT_MS = 30_000;

/** What waits in all lanes together, or of one tenant. */
class Load {
  events = 0;
  length = 0;

  fills(limits: AppendLimits, share: number): boolean {
    return this.events >= Math.ceil(limits.queueMax * share) || this.length >= limits.queueBytes * share;
  }
}

/** Group commit: each lane, a connection of its own, commits one batch after another of what waits. */
export class AppendLanes {
  readonly #limits: AppendLimits;
  readonly #metrics: Metrics;
  readonly #load = new Load();
  readonly #tenants = new Map<string, Load>();
  readonly #queue: AppendQueue;
  readonly #lanes: Lane[];
  readonly #idle: Lane[];
  #scheduled = false;
  #draining = false;
  #lastBatchMs = 10;
  #onIdle: (() => void)[] = [];

  constructor(commits: readonly Commit[], limits: AppendLimits, metrics: Metrics, log: Logger) {
    this.#limits = limits;
    this.#metrics = metrics;
    this.#queue = new AppendQueue(limits, () => this.#schedule());
    this.#lanes = commits.map(
      (commit) => new Lane(commit, (waiting, outcome) => this.#answer(waiting, outcome), metrics, log),
    );
    this.#idle = [...this.#lanes];
    metrics.gauge('append_queue', () => this.#load.events);
    metrics.gauge('append_queue_bytes', () => this.#load.length);
    metrics.gauge('append_failing_seconds', () => (this.#failingMs() ?? 0) / 1000);
  }

  append(event: Append): Promise<Appended> {
    if (this.#draining) return Promise.reject(new TuttiError('draining', 'This gateway is leaving service.'));
    if (this.#load.fills(this.#limits, 1) || this.#tenants.get(event.tenant)?.fills(this.#limits, TENANT_SHARE)) {
      const message = 'Too many events wait for their commit; send it again later with the same mid.';
      const retryAfterMs = this.#expectedWaitMs();
      return Promise.reject(new TuttiError('overloaded', message, { retryAfterMs, limit: 'append_queue' }));
    }
    return new Promise((resolve, reject) => {
      const waiting: Waiting = {
        event,
        length: event.data.length + event.by.length,
        since: performance.now(),
        timer: setTimeout(() => this.#expire(waiting), this.#limits.timeoutMs),
        state: 'queued',
        resolve,
        reject,
      };
      this.#count(waiting, 1);
      this.#queue.push(waiting);
    });
  }

  /** Since when some lane commits nothing though it tries to, ms since the Unix epoch; `undefined` where all do. */
  failingSince(): number | undefined {
    const ms = this.#failingMs();
    return ms === undefined ? undefined : Date.now() - ms;
  }

  #failingMs(): number | undefined {
    const longest = Math.max(...this.#lanes.map((lane) => lane.failingMs() ?? -1));
    return longest < 0 ? undefined : longest;
  }

  async drain(): Promise<void> {
    this.#draining = true;
    if (!this.#resting()) await new Promise<void>((resolve) => this.#onIdle.push(resolve));
  }

  #resting(): boolean {
    return this.#queue.queued === 0 && this.#idle.length === this.#lanes.length;
  }

  #expectedWaitMs(): number {
    const batches = Math.ceil(this.#queue.queued / this.#limits.batchMax / this.#lanes.length);
    return Math.min(5000, Math.max(100, Math.ceil(batches * this.#lastBatchMs)));
  }

  /**
   * Whoever appends in this turn of the loop comes along. A microtask is too early: each message that was read in this turn has a
   * callback of its own, with microtasks in between.
   */
  #schedule(): void {
    if (this.#scheduled || this.#idle.length === 0) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#dispatch();
    });
  }

  #dispatch(): void {
    while (this.#idle.length > 0) {
      const batch = this.#queue.take();
      if (!batch) break;
      void this.#work(this.#idle.pop() as Lane, batch);
    }
    if (this.#resting()) for (const resolve of this.#onIdle.splice(0)) resolve();
  }

  async #work(lane: Lane, batch: Batch): Promise<void> {
    const began = performance.now();
    await lane.settle(batch.events);
    this.#lastBatchMs = performance.now() - began;
    // Lanes that have nothing to commit do not learn by themselves that commits succeed again.
    if (lane.failingMs() === undefined) for (const other of this.#idle) other.forgive();
    this.#idle.push(lane);
    batch.done();
    this.#schedule();
  }

  #answer(waiting: Waiting, outcome: Answer): void {
    if (waiting.state === 'done') return;
    this.#finish(waiting);
    if (outcome instanceof TuttiError) {
      waiting.reject(outcome);
    } else if (outcome === 'conflict') {
      waiting.reject(new TuttiError('conflict', 'This mid belongs to an event of another publisher.'));
    } else {
      this.#metrics.observe('commit', (performance.now() - waiting.since) / 1000, {});
      if (outcome.duplicate) this.#metrics.add('publish_duplicates', {});
      else this.#metrics.add('publishes', { kind: 'event' });
      waiting.resolve(outcome);
    }
  }

  #expire(waiting: Waiting): void {
    if (waiting.state === 'queued') this.#queue.expire(waiting);
    this.#finish(waiting);
    waiting.reject(new TuttiError('log_unavailable', 'No commit in time. Send it again with the same mid.'));
    this.#schedule();
  }

  #finish(waiting: Waiting): void {
    clearTimeout(waiting.timer);
    waiting.state = 'done';
    this.#count(waiting, -1);
  }

  #count({ event: { tenant }, length }: Waiting, by: 1 | -1): void {
    const own = this.#tenants.get(tenant) ?? new Load();
    this.#tenants.set(tenant, own);
    for (const load of [this.#load, own]) {
      load.events += by;
      load.length += by * length;
    }
    if (own.events === 0) this.#tenants.delete(tenant);
  }
}

/** What an event is told: what became of it, or that Postgres refuses it. */
type Answer = Outcome | TuttiError;

/** Has one batch in flight, and settles it before the next: nothing of it is on its way any more when it says so. */
class Lane {
  readonly #commit: Commit;
  readonly #answer: (waiting: Waiting, answer: Answer) => void;
  readonly #metrics: Metrics;
  readonly #log: Logger;
  /** Attempts that failed since the last one that did not: begin of the first and end of the last, by the monotonic clock. */
  #failing: { since: number; last: number } | undefined;

  constructor(commit: Commit, answer: (waiting: Waiting, answer: Answer) => void, metrics: Metrics, log: Logger) {
    this.#commit = commit;
    this.#answer = answer;
    this.#metrics = metrics;
    this.#log = log;
  }

  /** For how long it has committed nothing though it tries to, in ms; `undefined` where it does. */
  failingMs(): number | undefined {
    const now = performance.now();
    if (this.#failing === undefined || now - this.#failing.last > FAILURE_KEPT_MS) return undefined;
    return now - this.#failing.since;
  }

  forgive(): void {
    this.#failing = undefined;
  }

  /** Returns when every event of the batch has its answer and no statement of it runs any more. */
  async settle(batch: readonly Waiting[]): Promise<void> {
    let backoffMs = BACKOFF_MIN_MS;
    for (;;) {
      // Sending again is safe: an event that did get in is found by its mid.
      const open = batch.filter((waiting) => waiting.state === 'sent');
      if (open.length === 0) return;
      const began = performance.now();
      try {
        const outcomes = await this.#commit(open.map((waiting) => waiting.event));
        this.#failing = undefined;
        this.#metrics.observe('append_batch', (performance.now() - began) / 1000, {});
        open.forEach((waiting, i) => {
          this.#answer(waiting, outcomes[i] ?? new TuttiError('internal', 'Internal error.'));
        });
        return;
      } catch (error) {
        if (isDataError(error)) {
          await this.#bisect(open, error);
          return;
        }
        this.#failing = { since: this.#failing?.since ?? began, last: performance.now() };
        this.#log.warn({ code: codeOf(error), events: open.length, err: error }, 'append failed, sending it again');
        await sleep(backoffMs * (0.5 + Math.random() / 2));
        backoffMs = Math.min(BACKOFF_MAX_MS, backoffMs * 2);
      }
    }
  }

  /** One event of the batch is refused by Postgres: the others must not share its fate, nor change places. */
  async #bisect(batch: readonly Waiting[], error: unknown): Promise<void> {
    const [first] = batch;
    if (first && batch.length === 1) {
      this.#log.warn({ code: codeOf(error), tenant: first.event.tenant, room: first.event.room }, 'event refused');
      this.#answer(first, new TuttiError('bad_request', 'The database refuses this event.', { cause: error }));
      return;
    }
    const middle = Math.ceil(batch.length / 2);
    await this.settle(batch.slice(0, middle));
    await this.settle(batch.slice(middle));
  }
}
