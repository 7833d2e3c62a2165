import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises';
import type { Append, Appended } from '../core/log.js';
import type { Logger, Metrics } from '../core/telemetry.js';
import { TuttiError } from '../errors.js';
import type { Outcome } from './append-batch.js';
import { codeOf, isDataError } from './refusal.js';

export interface AppendLimits {
  lanes: number;
  /** Events in one commit. */
  batchMax: number;
  /** How long a commit waits for company, in ms. */
  lingerMs: number;
  /** Events waiting in all lanes before appends are refused with `overloaded`. */
  queueMax: number;
  /** Length of the events waiting in all lanes, in UTF-16 units, before appends are refused likewise. */
  queueBytes: number;
  /** How long an event may wait for its commit, in ms. */
  timeoutMs: number;
}

/** Commits a batch over one connection: rejects when nothing, or nobody knows what, was committed. */
export type Commit = (events: readonly Append[]) => Promise<Outcome[]>;

/** UTF-16 length of the events of one commit. */
const BATCH_LENGTH = 2 * 1024 * 1024;
/** Part of the queue one tenant may fill. */
const TENANT_SHARE = 0.75;
const BACKOFF_MIN_MS = 25;
const BACKOFF_MAX_MS = 1000;
/** A failed commit says nothing of now after so long without another attempt, in ms: nobody publishes. */
const FAILURE_KEPT_MS = 30_000;

interface Waiting {
  readonly event: Append;
  readonly length: number;
  readonly since: number;
  readonly timer: NodeJS.Timeout;
  state: 'queued' | 'sent' | 'done';
  resolve(appended: Appended): void;
  reject(error: TuttiError): void;
}

/** What waits in all lanes together, or of one tenant. */
class Load {
  events = 0;
  length = 0;

  fills(limits: AppendLimits, share: number): boolean {
    return this.events >= Math.ceil(limits.queueMax * share) || this.length >= limits.queueBytes * share;
  }
}

/**
 * Group commit. A room always takes the same lane, a lane has one batch in flight, and a batch is settled before the
 * next begins: so events of a room keep the order of their appends, also when a connection is lost in between.
 */
export class AppendLanes {
  readonly #limits: AppendLimits;
  readonly #load = new Load();
  readonly #tenants = new Map<string, Load>();
  readonly #lanes: Lane[];
  #draining = false;

  constructor(commits: readonly Commit[], limits: AppendLimits, metrics: Metrics, log: Logger) {
    this.#limits = limits;
    this.#lanes = commits.map(
      (commit) => new Lane(commit, limits, (waiting, by) => this.#count(waiting, by), metrics, log),
    );
    metrics.gauge('append_queue', () => this.#load.events);
    metrics.gauge('append_queue_bytes', () => this.#load.length);
  }

  append(event: Append): Promise<Appended> {
    const lane = this.#lanes[hash(event.tenant, event.room) % this.#lanes.length] as Lane;
    if (this.#draining) return Promise.reject(new TuttiError('draining', 'This gateway is leaving service.'));
    if (this.#load.fills(this.#limits, 1) || this.#tenants.get(event.tenant)?.fills(this.#limits, TENANT_SHARE)) {
      const message = 'Too many events wait for their commit; send it again later with the same mid.';
      const retryAfterMs = lane.expectedWaitMs();
      return Promise.reject(new TuttiError('overloaded', message, { retryAfterMs, limit: 'append_queue' }));
    }
    return lane.append(event);
  }

  /** Since when some lane commits nothing though it tries to, ms since the Unix epoch; `undefined` where all do. */
  failingSince(): number | undefined {
    const since = this.#lanes.flatMap((lane) => lane.failingSince() ?? []);
    return since.length > 0 ? Math.min(...since) : undefined;
  }

  async drain(): Promise<void> {
    this.#draining = true;
    await Promise.all(this.#lanes.map((lane) => lane.idle()));
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

class Lane {
  readonly #commit: Commit;
  readonly #limits: AppendLimits;
  /** Told of every event that begins to wait (1) and ends it (-1). */
  readonly #count: (waiting: Waiting, by: 1 | -1) => void;
  readonly #metrics: Metrics;
  readonly #log: Logger;
  /** Tenants with something queued; the first is served next. */
  readonly #queues = new Map<string, Waiting[]>();
  #queued = 0;
  #working = false;
  /** Events worth waiting for before a batch leaves. */
  #target = 1;
  #gathered: (() => void) | undefined;
  #lastBatchMs = 10;
  /** Attempts that failed since the last one that did not: begin of the first by the wall clock, end of the last by the monotonic one. */
  #failing: { since: number; last: number } | undefined;
  #onIdle: (() => void)[] = [];

  constructor(
    commit: Commit,
    limits: AppendLimits,
    count: (waiting: Waiting, by: 1 | -1) => void,
    metrics: Metrics,
    log: Logger,
  ) {
    this.#commit = commit;
    this.#limits = limits;
    this.#count = count;
    this.#metrics = metrics;
    this.#log = log;
  }

  append(event: Append): Promise<Appended> {
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
      const queue = this.#queues.get(event.tenant);
      if (queue) queue.push(waiting);
      else this.#queues.set(event.tenant, [waiting]);
      this.#queued += 1;
      this.#count(waiting, 1);
      this.#wake();
    });
  }

  expectedWaitMs(): number {
    const batches = Math.ceil(this.#queued / this.#limits.batchMax);
    return Math.min(5000, Math.max(100, Math.ceil(batches * this.#lastBatchMs)));
  }

  failingSince(): number | undefined {
    const old = this.#failing === undefined || performance.now() - this.#failing.last > FAILURE_KEPT_MS;
    return old ? undefined : this.#failing?.since;
  }

  idle(): Promise<void> {
    if (!this.#working && this.#queued === 0) return Promise.resolve();
    return new Promise((resolve) => this.#onIdle.push(resolve));
  }

  #wake(): void {
    if (!this.#working) void this.#work();
    else if (this.#queued >= this.#target) this.#gathered?.();
  }

  async #work(): Promise<void> {
    this.#working = true;
    // Whoever appends in this turn of the loop comes along. A microtask is too early: each message that was read
    // in this turn has a callback of its own, with microtasks in between.
    await turn();
    while (this.#queued > 0) {
      if (this.#queued < this.#target && this.#limits.lingerMs > 0) await this.#company();
      const batch = this.#take();
      const began = performance.now();
      await this.#settle(batch);
      this.#lastBatchMs = performance.now() - began;
      this.#target = Math.min(this.#limits.batchMax, Math.max(1, batch.length, Math.floor(this.#target * 0.9)));
    }
    // Only such as gave up waiting can be left.
    this.#queues.clear();
    this.#working = false;
    for (const resolve of this.#onIdle.splice(0)) resolve();
  }

  /** Waits for about as many events as came lately, so that a lone publisher waits for nobody. */
  #company(): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer);
        this.#gathered = undefined;
        resolve();
      };
      const timer = setTimeout(done, this.#limits.lingerMs);
      this.#gathered = done;
    });
  }

  /** The next batch: one event of each tenant in turn, each tenant's oldest first. */
  #take(): Waiting[] {
    const batch: Waiting[] = [];
    let length = 0;
    while (batch.length < this.#limits.batchMax && (batch.length === 0 || length < BATCH_LENGTH)) {
      const next = this.#queues.entries().next().value;
      if (!next) break;
      const [tenant, queue] = next;
      const waiting = queue.shift();
      this.#queues.delete(tenant);
      if (queue.length > 0) this.#queues.set(tenant, queue);
      if (waiting?.state !== 'queued') continue;
      waiting.state = 'sent';
      this.#queued -= 1;
      length += waiting.length;
      batch.push(waiting);
    }
    return batch;
  }

  /** Returns when every event of the batch has its answer and no statement of it runs any more. */
  async #settle(batch: readonly Waiting[]): Promise<void> {
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
          this.#answer(waiting, outcomes[i]);
        });
        return;
      } catch (error) {
        if (isDataError(error)) {
          await this.#bisect(open, error);
          return;
        }
        const last = performance.now();
        this.#failing = { since: this.#failing?.since ?? Date.now() - (last - began), last };
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
      this.#finish(first);
      first.reject(new TuttiError('bad_request', 'The database refuses this event.', { cause: error }));
      return;
    }
    const middle = Math.ceil(batch.length / 2);
    await this.#settle(batch.slice(0, middle));
    await this.#settle(batch.slice(middle));
  }

  #answer(waiting: Waiting, outcome: Outcome | undefined): void {
    if (waiting.state === 'done') return;
    this.#finish(waiting);
    if (outcome === undefined) {
      waiting.reject(new TuttiError('internal', 'Internal error.'));
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
    if (waiting.state === 'queued') this.#queued -= 1;
    this.#finish(waiting);
    waiting.reject(new TuttiError('log_unavailable', 'No commit in time. Send it again with the same mid.'));
  }

  #finish(waiting: Waiting): void {
    clearTimeout(waiting.timer);
    waiting.state = 'done';
    this.#count(waiting, -1);
  }
}

/** FNV-1a over the room's key. */
function hash(tenant: string, room: string): number {
  let value = 0x811c9dc5;
  for (const text of [tenant, ':', room]) {
    for (let i = 0; i < text.length; i++) value = Math.imul(value ^ text.charCodeAt(i), 0x01000193);
  }
  return value >>> 0;
}
