import { TuttiError } from '../errors.js';
import type { Part } from '../protocol/parts.js';
import type { Actor, JsonText } from '../protocol/primitives.js';
import { isTerminal, type RunError, type TerminalRunState, type Usage } from '../protocol/runs.js';
import type { PushReply } from '../protocol/worker.js';
import type { Bus } from './bus.js';
import { type Clock, every } from './clock.js';
import { type RoomKey, systemKey } from './keys.js';
import { actorOf, type Principal } from './principal.js';
import { RunCommits } from './run-commits.js';
import type { RunChange, RunStore, StoredRun } from './run-store.js';
import { type Chunk, chunkKey } from './run-wire.js';
import { RunWriter } from './run-writer.js';
import { countLimit, type Logger, type Metrics } from './telemetry.js';

export interface WriterLimits {
  leaseMs: number;
  commitMs: number;
  segmentBytes: number;
  /** Uncommitted output of one run before its pushes wait, in bytes. */
  uncommittedMaxBytes: number;
  /** Uncommitted output of all runs of a gateway before pushes are refused, in bytes. */
  uncommittedTotalBytes: number;
  outputMaxBytes: number;
  queueTtlMs: number;
}

/** Output of a run read from the store at once, in bytes. */
const PAGE_BYTES = 1024 * 1024;
/** How long a drain waits after a commit that failed, in ms. */
const DRAIN_RETRY_MS = 100;

/** The channel on which a run's worker is told that something happened to the run. */
export const runChannel = (tenant: string, run: string): RoomKey => systemKey(tenant, `run.${run}`);

const isStale = (writer: RunWriter): boolean => writer.status === 'stale';
const fenced = () => new TuttiError('fenced', 'The run is no longer yours.');
export const noSuchRun = () => new TuttiError('not_found', 'There is no such run.');

/** @throws TuttiError `forbidden` unless a worker key acts. */
export function requireWorker(principal: Principal): void {
  if (principal.kind !== 'worker') throw new TuttiError('forbidden', 'Only a worker key may do this.');
}

/** How a run ends; `fence` null where it is not its worker who ends it. */
interface Ending {
  fence: number | null;
  state: TerminalRunState;
  usage?: Usage | undefined;
  error?: RunError | undefined;
  meta?: JsonText | undefined;
  by: Actor;
}

interface Deps {
  store: RunStore;
  bus: Bus;
  metrics: Metrics;
  log: Logger;
  limits: WriterLimits;
  clock: Clock;
  /** To the readers on this gateway. */
  view: (room: RoomKey, chunk: Chunk) => void;
}

/**
 * What workers push to this gateway. Announce, then commit: viewers get parts at once, the store gets them some
 * hundred ms later, and the worker keeps what is above `committed` until then.
 */
export class RunWriters {
  readonly #deps: Deps;
  readonly #writers = new Map<string, RunWriter>();
  readonly #commits: RunCommits;
  /** Uncommitted, of all writers. */
  readonly #load = { bytes: 0 };
  /** Calls of one run take turns, so that pipelined pushes keep their order. */
  readonly #turns = new Map<string, Promise<unknown>>();
  readonly #listeners = new Map<string, Set<() => void>>();
  readonly #unsent = new Set<RunWriter>();
  #flushing = false;
  #stopTick: (() => void) | undefined;
  #draining = false;

  constructor(deps: Deps) {
    this.#deps = deps;
    const { store, metrics, log, clock } = deps;
    this.#commits = new RunCommits(
      { store, metrics, log, clock, leaseMs: deps.limits.leaseMs },
      () => this.#writers.values(),
      (writer) => this.#settled(writer),
    );
    metrics.gauge('runs_held', () => [...this.#writers.values()].filter(({ status }) => status === 'open').length);
    metrics.gauge('runs_uncommitted_bytes', () => this.#load.bytes);
  }

  start(): void {
    this.#stopTick ??= every(this.#deps.clock, this.#deps.limits.commitMs, () => {
      this.#commits.all();
      this.#sweep();
    });
  }

  /** A run that was claimed here; `asked` is when, by the monotonic clock. */
  adopt(run: StoredRun, asked: number): void {
    const writer = new RunWriter(run, asked + this.#deps.limits.leaseMs, this.#load);
    writer.claimedAt = this.#deps.clock.monotonic();
    this.#hold(writer);
  }

  async push(worker: Principal, body: { run: string; fence: number; n: number; parts: Part[] }): Promise<PushReply> {
    requireWorker(worker);
    return this.#inTurn(body.run, async () => {
      if (this.#draining) throw new TuttiError('draining', 'This gateway is leaving; go on at another.');
      let writer = await this.#writer(worker, body.run, body.fence);
      if (writer.status === 'open' && body.n > writer.accepted) writer = await this.#reread(worker, writer);
      const { limits } = this.#deps;
      if (writer.status === 'open' && writer.bytes >= limits.uncommittedMaxBytes) {
        countLimit(this.#deps.metrics, 'run_uncommitted');
      }
      while (writer.status === 'open' && writer.bytes >= limits.uncommittedMaxBytes) {
        writer.due = true;
        await this.#commits.next();
      }
      if (writer.status === 'open' && this.#load.bytes >= limits.uncommittedTotalBytes) {
        this.#commits.all();
        const extra = { retryAfterMs: limits.commitMs, limit: 'run_uncommitted_total' } as const;
        throw new TuttiError('overloaded', 'Too much output waits to be committed; send it again later.', extra);
      }
      if (writer.status !== 'open') return this.#refusal(writer);
      this.#accept(writer, body.n, body.parts);
      return { committed: writer.committed, cancelled: false };
    });
  }

  /** Extends the lease. */
  async heartbeat(worker: Principal, body: { run: string; fence: number }): Promise<PushReply> {
    requireWorker(worker);
    return this.#inTurn(body.run, async () => {
      const writer = await this.#writer(worker, body.run, body.fence);
      if (writer.status === 'open') await this.#revalidate(writer);
      if (writer.status !== 'open' && writer.status !== 'stale') return this.#refusal(writer);
      return { committed: writer.committed, cancelled: false };
    });
  }

  /** Ends a run with all its output. Asked again it tells the same again. */
  async finish(
    worker: Principal,
    body: { run: string; fence: number; n?: number | undefined },
    end: Omit<Ending, 'fence' | 'by'>,
  ): Promise<RunChange> {
    requireWorker(worker);
    return this.#inTurn(body.run, async () => {
      let writer = await this.#writer(worker, body.run, body.fence);
      const lacks = () => writer.status === 'open' && body.n !== undefined && body.n > writer.accepted;
      if (lacks()) writer = await this.#reread(worker, writer);
      if (lacks()) {
        throw new TuttiError('out_of_order', 'Parts are missing at the end.', { expected: writer.accepted });
      }
      return this.#end(writer, { fence: body.fence, ...end, by: actorOf(worker) });
    });
  }

  /** Gives a run back after committing what it has: without attempts left that is what remains. */
  async giveUp(worker: Principal, body: { run: string; fence: number; error: RunError }): Promise<RunChange> {
    requireWorker(worker);
    return this.#inTurn(body.run, async () => {
      const writer = await this.#writer(worker, body.run, body.fence);
      while (writer.status === 'open' && writer.bytes > 0) {
        writer.due = true;
        await this.#commits.next();
      }
      if (writer.status !== 'open') this.#refusal(writer);
      const { tenant, id: run, fence } = writer;
      const { queueTtlMs } = this.#deps.limits;
      const change = await this.#deps.store.retry({
        tenant,
        run,
        fence,
        error: body.error,
        by: actorOf(worker),
        queueTtlMs,
      });
      writer.end(isTerminal(change.run.state) ? 'ended' : 'fenced');
      return change;
    });
  }

  /** Cancels a run, with all the output that came to this gateway. */
  async cancel(stored: StoredRun, by: Actor): Promise<RunChange> {
    const writer = this.#writers.get(stored.id);
    if (writer?.tenant === stored.tenant) return this.#end(writer, { fence: null, state: 'cancelled', by });
    const { tenant, id: run } = stored;
    const nothing = { last: undefined, usage: undefined, error: undefined, meta: undefined };
    return this.#deps.store.end({ tenant, run, fence: null, state: 'cancelled', ...nothing, by });
  }

  /** Somebody says that something happened to a run held here: looks it up. */
  hint(run: string): void {
    const writer = this.#writers.get(run);
    if (writer?.status === 'open') void this.#revalidate(writer).catch(() => undefined);
  }

  /** Calls the listener once when the run is cancelled. Returns the unsubscribe. */
  onCancelled(run: string, listener: () => void): () => void {
    if (this.#writers.get(run)?.status === 'cancelled') {
      queueMicrotask(listener);
      return () => undefined;
    }
    const listeners = this.#listeners.get(run) ?? new Set();
    this.#listeners.set(run, listeners.add(listener));
    return () => {
      listeners.delete(listener);
      if (listeners.size === 0 && this.#listeners.get(run) === listeners) this.#listeners.delete(run);
    };
  }

  /** Commits everything and takes no more parts. Resolves when nothing is left; never rejects. */
  async drain(): Promise<void> {
    this.#draining = true;
    this.#flush();
    while ([...this.#writers.values()].some((writer) => writer.status === 'open' && writer.bytes > 0)) {
      this.#commits.all();
      await this.#commits.next().catch(() => new Promise<void>((wait) => this.#deps.clock.after(DRAIN_RETRY_MS, wait)));
    }
    await Promise.all([...this.#writers.values()].map((writer) => writer.ending));
  }

  close(): void {
    this.#stopTick?.();
    for (const writer of this.#writers.values()) {
      writer.end('stale');
      this.#deps.bus.unsubscribe(runChannel(writer.tenant, writer.id));
    }
    this.#writers.clear();
    this.#listeners.clear();
    this.#commits.close();
  }

  #accept(writer: RunWriter, n: number, parts: readonly Part[]): void {
    const { limits, metrics, clock } = this.#deps;
    const first = writer.accepted === 0;
    const count = writer.accept(n, parts, limits.outputMaxBytes);
    if (count === 0) return;
    metrics.add('run_parts', { model: writer.model }, count);
    if (first && writer.claimedAt !== undefined) {
      metrics.observe('run_first_token', (clock.monotonic() - writer.claimedAt) / 1000, { model: writer.model });
    }
    if (writer.bytes >= limits.segmentBytes) writer.due = true;
    if (writer.due) this.#commits.poke();
    this.#unsent.add(writer);
    if (this.#flushing) return;
    this.#flushing = true;
    clock.soon(() => this.#flush());
  }

  /** Announces what came in this turn of the loop, one chunk for each run. */
  #flush(): void {
    this.#flushing = false;
    for (const writer of this.#unsent) this.#announce(writer);
    this.#unsent.clear();
  }

  #announce(writer: RunWriter): void {
    const chunk = writer.takeChunk();
    if (!chunk) return;
    this.#deps.view(writer.room, chunk);
    this.#deps.bus.announce(writer.room, { kind: 'chunk', key: chunkKey(chunk), frame: chunk.frame });
  }

  /**
   * Ends a run held here. Nothing is taken meanwhile; where the store does not answer the run goes on.
   * Of several who end a run at the same time one wins, and all get what it became.
   */
  async #end(writer: RunWriter, end: Ending): Promise<RunChange> {
    while (writer.ending) await writer.ending.catch(() => undefined);
    const ending = this.#endNow(writer, end);
    writer.ending = ending.catch(() => undefined);
    try {
      return await ending;
    } finally {
      writer.ending = undefined;
    }
  }

  async #endNow(writer: RunWriter, end: Ending): Promise<RunChange> {
    const { store } = this.#deps;
    if (writer.status === 'open') writer.status = 'sealed';
    this.#announce(writer);
    await this.#commits.idle(writer);
    // Without its last parts a run must not count as complete: the worker has to send them again.
    if (writer.status === 'stale' && end.fence !== null) this.#refusal(writer);
    const { tenant, id: run } = writer;
    const { fence, state, usage, error, meta, by } = end;
    const last = writer.status === 'sealed' ? writer.segment() : undefined;
    try {
      const change = await store.end({ tenant, run, fence, state, last, usage, error, meta, by });
      writer.end(change.run.state === 'cancelled' ? 'cancelled' : 'ended');
      this.#settled(writer);
      return change;
    } catch (problem) {
      if (problem instanceof TuttiError && problem.code === 'out_of_order') writer.end('stale');
      else if (problem instanceof TuttiError && problem.code === 'fenced') writer.end('fenced');
      else if (writer.status === 'sealed') writer.status = 'open';
      throw problem;
    }
  }

  /**
   * The writer of a run that this worker holds, or of one that is over for it.
   * @throws TuttiError `not_found` also for a run of another tenant, `fenced`, `log_unavailable`.
   */
  async #writer(worker: Principal, run: string, fence: number): Promise<RunWriter> {
    const known = this.#writers.get(run);
    if (known && worker.tenant !== null && worker.tenant !== known.tenant) throw noSuchRun();
    if (!known || known.fence < fence || known.status === 'stale') return this.#open(worker, run, fence);
    if (known.fence > fence) throw fenced();
    if (known.ending) await known.ending;
    // Another may have got the run meanwhile: nothing is announced before the store says that it is still ours.
    if (known.status === 'open' && this.#deps.clock.monotonic() >= known.leaseUntil) await this.#revalidate(known);
    return isStale(known) ? this.#open(worker, run, fence) : known;
  }

  /** A run that was claimed, or pushed so far, at another gateway. */
  async #open(worker: Principal, run: string, fence: number): Promise<RunWriter> {
    const { store } = this.#deps;
    const stored = await (worker.tenant === null ? store.find(run) : store.get(worker.tenant, run));
    if (!stored) throw noSuchRun();
    if (stored.fence !== fence || stored.state === 'queued') throw fenced();
    const writer = new RunWriter(stored, 0, this.#load);
    if (isTerminal(stored.state)) {
      writer.end(stored.state === 'cancelled' ? 'cancelled' : 'ended');
      return writer;
    }
    for (let n = 0; n < stored.committed; ) {
      const segments = await store.segments(stored.tenant, run, stored.attempt, n, PAGE_BYTES);
      const last = segments.at(-1);
      if (!last) break;
      for (const segment of segments) writer.count(JSON.parse(segment.parts) as Part[]);
      n = last.n + last.count;
    }
    await this.#revalidate(writer);
    if (isStale(writer)) return this.#open(worker, run, fence);
    if (writer.status === 'open') this.#hold(writer);
    return writer;
  }

  /** The worker is ahead of us: it went on at another gateway, or it lost what was never accepted. */
  async #reread(worker: Principal, writer: RunWriter): Promise<RunWriter> {
    while (writer.status === 'open' && writer.bytes > 0) {
      writer.due = true;
      await this.#commits.next();
    }
    if (writer.status === 'open') await this.#revalidate(writer);
    return isStale(writer) ? this.#open(worker, writer.id, writer.fence) : writer;
  }

  async #revalidate(writer: RunWriter): Promise<void> {
    const { store, limits, clock } = this.#deps;
    const { tenant, id: run, fence, committed } = writer;
    const asked = clock.monotonic();
    const [result] = await store.heartbeat([{ tenant, run, fence }], limits.leaseMs);
    if (!result || writer.status !== 'open') return;
    writer.settle(result, committed, asked + limits.leaseMs);
    this.#settled(writer);
  }

  #hold(writer: RunWriter): void {
    const before = this.#writers.get(writer.id);
    this.#writers.set(writer.id, writer);
    if (before) before.end('stale');
    else void this.#deps.bus.subscribe(runChannel(writer.tenant, writer.id));
  }

  #settled(writer: RunWriter): void {
    if (writer.status !== 'cancelled') return;
    const listeners = this.#listeners.get(writer.id);
    this.#listeners.delete(writer.id);
    for (const listener of listeners ?? []) listener();
  }

  #refusal(writer: RunWriter): PushReply {
    if (writer.status === 'cancelled') return { committed: writer.committed, cancelled: true };
    if (writer.status !== 'stale') throw fenced();
    throw new TuttiError('out_of_order', 'Parts before these are missing.', { expected: writer.committed });
  }

  /** Forgets writers that have nothing to commit and whose lease is over; the store knows them still. */
  #sweep(): void {
    const now = this.#deps.clock.monotonic();
    for (const [run, writer] of this.#writers) {
      if (writer.bytes > 0 || writer.ending || this.#turns.has(run) || now < writer.leaseUntil) continue;
      this.#writers.delete(run);
      this.#deps.bus.unsubscribe(runChannel(writer.tenant, run));
    }
  }

  #inTurn<T>(run: string, work: () => Promise<T>): Promise<T> {
    const before = this.#turns.get(run);
    const turn = before ? before.then(work) : work();
    const settled = turn.catch(() => undefined);
    this.#turns.set(run, settled);
    void settled.then(() => {
      if (this.#turns.get(run) === settled) this.#turns.delete(run);
    });
    return turn;
  }
}
