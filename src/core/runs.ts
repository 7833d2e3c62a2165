import { allows } from '../protocol/capabilities.js';
import type { CommandPayload } from '../protocol/commands.js';
import type { Part } from '../protocol/parts.js';
import type { JsonText } from '../protocol/primitives.js';
import type { ResetReason } from '../protocol/pushes.js';
import { isTerminal, type LiveRun, type Run, type RunError, type Usage } from '../protocol/runs.js';
import type { Assignment, PushReply } from '../protocol/worker.js';
import type { Announcement, Bus } from './bus.js';
import { type Clock, every } from './clock.js';
import type { RoomOutput } from './feeds.js';
import { type RoomKey, roomKey, roomOf, systemKey } from './keys.js';
import { actorOf, type Principal, requireRight, tenantOfPrincipal } from './principal.js';
import { uuidv7 } from './run-id.js';
import { RunQueue } from './run-queue.js';
import { type RestSizes, type RunRest, restSizes } from './run-rest.js';
import type { RunChange, RunStore, StoredRun } from './run-store.js';
import { RunViews } from './run-views.js';
import { type RunWatcher, watchRun } from './run-watch.js';
import { resetFrame, stateFrame, toRun } from './run-wire.js';
import { noSuchRun, RunWriters, requireWorker, runChannel, type WriterLimits } from './run-writers.js';
import type { Logger, Metrics } from './telemetry.js';

export type { RunWatcher } from './run-watch.js';

export interface RunLimits extends WriterLimits {
  maxAttempts: number;
  durationMaxMs: number;
  sweepMs: number;
  livePerTenant: number;
  livePerRoom: number;
  /** Claims that may wait for a run at this gateway. */
  claimsWaitingMax: number;
}

/** A worker's last word. `n` is how many parts it sent in all, where it says so. */
interface Finish {
  run: string;
  fence: number;
  n?: number | undefined;
  usage?: Usage | undefined;
  meta?: JsonText | undefined;
}

export interface RunsDeps {
  store: RunStore;
  bus: Bus;
  rooms: RoomOutput;
  metrics: Metrics;
  log: Logger;
  limits: RunLimits;
  clock: Clock;
  /** Makes the id of a run; ids made later sort later. */
  newId?: () => string;
  /** What a join brings at once. */
  rest?: RestSizes;
}

/** Runs one sweep deals with before the next is asked for. */
const SWEEP_LIMIT = 200;
const RUN_CHANNEL = '!run.';
const QUEUE_CHANNEL = '!runs';

/**
 * Inference runs on this gateway: clients create, watch and cancel them, workers claim and compute them, readers of
 * rooms see them live. Postgres decides; what gateways tell each other is a hint, healed by {@link check}.
 */
export class Runs {
  readonly #deps: RunsDeps;
  readonly #views: RunViews;
  readonly #writers: RunWriters;
  readonly #queue: RunQueue;
  #stopSweeper: (() => void) | undefined;
  #sweeping: Promise<void> | undefined;
  readonly #newId: () => string;

  constructor(deps: RunsDeps) {
    const { store, bus, rooms, metrics, log, limits, clock } = deps;
    this.#deps = deps;
    this.#newId = deps.newId ?? (() => uuidv7());
    this.#views = new RunViews({ store, log, rooms, metrics, clock, rest: deps.rest ?? restSizes });
    this.#writers = new RunWriters({
      store,
      bus,
      metrics,
      log,
      limits,
      clock,
      view: (room, chunk) => this.#views.chunk(room, chunk),
    });
    this.#queue = new RunQueue({ store, bus, metrics, log, clock, limits }, (run) => this.#giveBack(run));
  }

  /**
   * Queues a run. `created` is false where the mid was used before: `run` is that run then.
   * @throws TuttiError `forbidden`, `quota_exceeded`, `conflict`, `log_unavailable`.
   */
  async create(
    principal: Principal,
    { room, model, input, mid }: CommandPayload<'run.create'>,
  ): Promise<{ run: Run; created: boolean }> {
    const tenant = requireRight(principal, room, 'run.create');
    const { livePerTenant, livePerRoom, maxAttempts, queueTtlMs } = this.#deps.limits;
    const initiator = actorOf(principal);
    const change = await this.#deps.store.create(
      { id: this.#newId(), tenant, room, model, input, initiator, mid },
      { livePerTenant, livePerRoom, maxAttempts, queueTtlMs },
    );
    if (change.event) {
      this.#count(change.run, 'created');
      this.#tell(change);
      this.#queued(tenant);
    }
    return { run: toRun(change.run), created: change.event !== undefined };
  }

  /**
   * Cancels a run; one that is over stays as it is.
   * @throws TuttiError `not_found` also for another tenant's run and for a room this principal may not join.
   */
  async cancel(principal: Principal, runId: string): Promise<Run> {
    const stored = await this.#visible(principal, runId, 'run.cancel');
    if (isTerminal(stored.state)) return toRun(stored);
    const change = await this.#writers.cancel(stored, actorOf(principal));
    this.#deps.bus.announce(runChannel(stored.tenant, runId), { kind: 'hint', key: 'cancelled', frame: '' });
    this.#ended(change);
    return toRun(change.run);
  }

  /** @throws TuttiError `not_found` also for another tenant's run and for a room this principal may not join. */
  async get(principal: Principal, runId: string): Promise<Run & { output?: Part[] }> {
    const stored = await this.#visible(principal, runId, 'join');
    return { ...toRun(stored), ...(stored.output ? { output: stored.output } : {}) };
  }

  /**
   * Output of one run from part `n` of an attempt on, live until it ends. Resolves when it ended, the reader is gone
   * or `signal` aborted.
   * @throws TuttiError as {@link get}.
   */
  async watch(
    principal: Principal,
    runId: string,
    from: { attempt: number; n: number } | undefined,
    watcher: RunWatcher,
    signal: AbortSignal,
  ): Promise<void> {
    const stored = await this.#visible(principal, runId, 'join');
    const { store, bus, clock } = this.#deps;
    await watchRun({ store, bus, clock, views: this.#views }, stored, from, watcher, signal);
  }

  /** Live runs of a room, also of one that is not open here, without their output. */
  async liveIn(room: RoomKey): Promise<Run[]> {
    return (await this.#deps.store.live([room])).map(toRun);
  }

  /**
   * Gives the worker a run it can compute, waiting up to `waitMs` for one; `undefined` where there is none. Aborted,
   * it takes none.
   * @throws TuttiError `forbidden`, `draining`, `log_unavailable`.
   */
  async claim(
    worker: Principal,
    body: { models: string[]; waitMs: number },
    signal: AbortSignal,
  ): Promise<Assignment | undefined> {
    requireWorker(worker);
    const claimed = await this.#queue.claim(worker, body, signal);
    if (!claimed) return undefined;
    const { run: stored, input, asked } = claimed;
    this.#writers.adopt(stored, asked);
    this.#count(stored, 'claimed');
    const waited = (stored.startedAt ?? stored.createdAt) - stored.createdAt;
    this.#deps.metrics.observe('run_queue_wait', waited / 1000, { model: stored.model });
    this.#tell({ run: stored });
    const { attempt, fence, committed } = stored;
    return { run: toRun(stored), input, attempt, fence, leaseMs: this.#deps.limits.leaseMs, committed };
  }

  /**
   * Takes output: viewers have it soon after, the store when `committed` says so. Waits while too much of the run is
   * uncommitted. Parts that are known are skipped, so that sending again is safe.
   * @throws TuttiError `fenced`, `out_of_order` with the number that is due, `payload_too_large`, `not_found`,
   * `draining`, `log_unavailable`; nothing of the push was taken then.
   */
  push(worker: Principal, body: { run: string; fence: number; n: number; parts: Part[] }): Promise<PushReply> {
    return this.#writers.push(worker, body);
  }

  /** Extends the lease. @throws TuttiError `fenced`, `not_found`, `log_unavailable`. */
  heartbeat(worker: Principal, body: { run: string; fence: number }): Promise<PushReply> {
    return this.#writers.heartbeat(worker, body);
  }

  /**
   * Completes a run with the output that was accepted. Safe to repeat; a run that was cancelled meanwhile comes back
   * as it is.
   * @throws TuttiError `fenced`, `not_found`, `log_unavailable` (outcome unknown); `out_of_order` where parts that were
   * sent (`n` of them) have been lost and are to be sent again from `expected` on.
   */
  async finish(worker: Principal, { run, fence, n, usage, meta }: Finish): Promise<Run> {
    return this.#ended(await this.#writers.finish(worker, { run, fence, n }, { state: 'completed', usage, meta }));
  }

  /** Fails a run for good, or gives it back to be tried again. @throws TuttiError as {@link finish}. */
  async fail(
    worker: Principal,
    { run, fence, error, retryable }: { run: string; fence: number; error: RunError; retryable: boolean },
  ): Promise<Run> {
    const change = retryable
      ? await this.#writers.giveUp(worker, { run, fence, error })
      : await this.#writers.finish(worker, { run, fence }, { state: 'failed', error });
    if (isTerminal(change.run.state)) return this.#ended(change);
    this.#retried(change, 'worker_failed');
    return toRun(change.run);
  }

  /** Calls the listener once when a run held on this gateway is cancelled (RUN3). Returns the unsubscribe. */
  onCancelled(runId: string, listener: () => void): () => void {
    return this.#writers.onCancelled(runId, listener);
  }

  /** Loads a room's live runs. Counted. @throws TuttiError `log_unavailable`; the room is then not held. */
  openRoom(room: RoomKey): Promise<void> {
    return this.#views.openRoom(room);
  }

  closeRoom(room: RoomKey): void {
    this.#views.closeRoom(room);
  }

  /** The room's log became another one: its live runs are told again from their first part. */
  restartRoom(room: RoomKey): void {
    this.#views.restartRoom(room);
  }

  /**
   * Live runs of an open room with their folded output so far (RUN4), at most about `maxBytes` of it, and what brings
   * the reader the rest of it; see {@link RunViews.join}.
   */
  join(room: RoomKey, maxBytes: number): { runs: LiveRun[]; rest: RunRest } {
    return this.#views.join(room, maxBytes);
  }

  /** An announcement of another gateway, of a room or of a channel that runs subscribed to. */
  receive(room: RoomKey, message: Announcement): void {
    if (message.kind !== 'hint') {
      this.#views.receive(room, message);
      return;
    }
    const name = roomOf(room);
    if (name === QUEUE_CHANNEL) this.#queue.wake();
    else if (name.startsWith(RUN_CHANNEL)) this.#writers.hint(name.slice(RUN_CHANNEL.length));
  }

  /** Heals what lost announcements left in open rooms. @throws TuttiError `log_unavailable`. */
  check(): Promise<void> {
    return this.#views.check();
  }

  start(): void {
    this.#writers.start();
    this.#queue.start();
    this.#stopSweeper ??= every(this.#deps.clock, this.#deps.limits.sweepMs, () => {
      this.#sweeping ??= this.#sweep().finally(() => {
        this.#sweeping = undefined;
      });
    });
  }

  /** Gives out no more runs, takes no more output, and resolves when all that was taken is committed. */
  async drain(): Promise<void> {
    this.#queue.drain();
    await this.#writers.drain();
  }

  /** Stops at once; what is not committed is lost here and sent again by workers elsewhere. */
  close(): void {
    this.#stopSweeper?.();
    this.#queue.close();
    this.#writers.close();
    this.#views.close();
  }

  async #visible(principal: Principal, runId: string, wanted: 'join' | 'run.cancel'): Promise<StoredRun> {
    const stored = await this.#deps.store.get(tenantOfPrincipal(principal), runId);
    if (
      !stored ||
      (!allows(principal.capabilities, stored.room, 'join') && !allows(principal.capabilities, stored.room, wanted))
    ) {
      throw noSuchRun();
    }
    requireRight(principal, stored.room, wanted);
    return stored;
  }

  /** Lost leases and queues too long (RUN2). Every gateway looks; one of them gets each run. */
  async #sweep(): Promise<void> {
    try {
      for (;;) {
        const changes = await this.#deps.store.sweep(SWEEP_LIMIT, this.#deps.limits.queueTtlMs);
        for (const change of changes) {
          if (isTerminal(change.run.state)) this.#ended(change);
          else this.#retried(change, 'worker_lost');
          this.#writers.hint(change.run.id);
        }
        if (changes.length < SWEEP_LIMIT) return;
      }
    } catch (error) {
      this.#deps.log.warn({ err: error }, 'Lost runs could not be looked for; trying again.');
    }
  }

  async #giveBack(run: StoredRun): Promise<void> {
    const { queueTtlMs } = this.#deps.limits;
    await this.#deps.store.release({ tenant: run.tenant, run: run.id, fence: run.fence, queueTtlMs });
    this.#queued(run.tenant);
  }

  #queued(tenant: string): void {
    this.#queue.wake();
    for (const owner of [tenant, '*']) {
      this.#deps.bus.announce(systemKey(owner, 'runs'), { kind: 'hint', key: 'queued', frame: '' });
    }
  }

  #retried(change: RunChange, reason: ResetReason): void {
    const { run } = change;
    this.#count(run, 'retried');
    const frame = resetFrame(run.room, run.id, run.attempt, reason);
    this.#deps.bus.announce(roomKey(run.tenant, run.room), { kind: 'run', key: run.id, frame });
    this.#tell(change, reason);
    this.#queued(run.tenant);
  }

  /** Only the one who ended it tells; a repeat has no event. */
  #ended(change: RunChange): Run {
    const run = toRun(change.run);
    if (change.event) {
      this.#count(change.run, run.state);
      if (run.startedAt !== undefined && run.finishedAt !== undefined) {
        const labels = { model: run.model, outcome: run.state };
        this.#deps.metrics.observe('run_duration', (run.finishedAt - run.startedAt) / 1000, labels);
      }
    }
    this.#tell(change);
    return run;
  }

  /** To readers here, then to the other gateways. */
  #tell({ run, event }: RunChange, reason?: ResetReason): void {
    const key = roomKey(run.tenant, run.room);
    this.#views.changed(run, reason);
    this.#deps.bus.announce(key, { kind: 'run', key: run.id, frame: stateFrame(toRun(run)) });
    if (event) this.#deps.rooms.committed(key, event);
  }

  #count(run: StoredRun, outcome: string): void {
    this.#deps.metrics.add('runs', { model: run.model, outcome });
  }
}
