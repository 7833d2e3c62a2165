import { TuttiError } from '../errors.js';
import type { Bus } from './bus.js';
import { type Clock, every } from './clock.js';
import { type RoomKey, systemKey } from './keys.js';
import type { Principal } from './principal.js';
import type { RunStore, StoredRun } from './run-store.js';
import type { Logger, Metrics } from './telemetry.js';

/** How often waiting claims look by themselves, should the hint that a run was queued be lost, in ms. */
const POLL_MS = 1000;
/** How long hints of a tenant are listened to after its last claim, in ms. */
const LINGER_MS = 60_000;
/** Different lists of models that one key may wait for at a time: each costs a query whenever a run is queued. */
const KINDS_PER_KEY_MAX = 32;
const FULL_RETRY_MS = 1000;

/** A claimed run, its input, and when it was asked for by the monotonic clock. */
export interface Claimed {
  run: StoredRun;
  input: unknown;
  asked: number;
}

interface Waiter {
  readonly tenant: string | null;
  readonly models: readonly string[];
  readonly worker: string;
  /** Waiters of one kind can take each other's runs. */
  readonly kind: string;
  /** @returns whether somebody was still there to take it. */
  settle(result: Claimed | undefined | TuttiError): boolean;
}

interface QueueLimits {
  leaseMs: number;
  durationMaxMs: number;
  /** Claims that may wait at a time. */
  claimsWaitingMax: number;
}

interface QueueDeps {
  store: RunStore;
  bus: Bus;
  metrics: Metrics;
  log: Logger;
  limits: QueueLimits;
  clock: Clock;
}

const channelOf = (tenant: string | null): RoomKey => systemKey(tenant ?? '*', 'runs');

/** Claims that wait for a run, first come, first served; woken by hints, with a poll for the hints that are lost. */
export class RunQueue {
  readonly #deps: QueueDeps;
  readonly #giveBack: (run: StoredRun) => Promise<void>;
  readonly #waiters = new Set<Waiter>();
  readonly #channels = new Map<RoomKey, number>();
  #afters: (() => void)[] = [];
  #again = false;
  #serving = false;
  #stopPoll: (() => void) | undefined;
  #draining = false;

  /** `giveBack` gets a run that nobody was left to take. */
  constructor(deps: QueueDeps, giveBack: (run: StoredRun) => Promise<void>) {
    this.#deps = deps;
    this.#giveBack = giveBack;
    deps.metrics.gauge('claims_waiting', () => this.#waiters.size);
  }

  start(): void {
    this.#stopPoll ??= every(this.#deps.clock, POLL_MS, () => {
      this.wake();
      this.#unsubscribe();
    });
  }

  /**
   * Resolves with a run, or with `undefined` after `waitMs`, at the latest when the gateway drains.
   * @throws TuttiError `draining`; `overloaded` where too many wait, or the key waits for too many different lists of
   * models.
   */
  claim(
    worker: Principal,
    body: { models: string[]; waitMs: number },
    signal: AbortSignal,
  ): Promise<Claimed | undefined> {
    if (this.#draining) throw new TuttiError('draining', 'This gateway is leaving; ask another.');
    if (this.#waiters.size >= this.#deps.limits.claimsWaitingMax) {
      throw new TuttiError('overloaded', 'Too many workers wait for a run at this gateway; ask another, or later.', {
        retryAfterMs: FULL_RETRY_MS,
        limit: 'claims_waiting',
      });
    }
    const { tenant, id } = worker;
    const models = [...new Set(body.models)].sort();
    const kind = `${tenant ?? '*'} ${models.join(' ')}`;
    this.#boundKinds(id, kind);
    this.#subscribe(channelOf(tenant));
    return new Promise((resolve, reject) => {
      let open = true;
      const settle = (result: Claimed | undefined | TuttiError) => {
        if (!open) return false;
        open = false;
        cancelWait?.();
        signal.removeEventListener('abort', give);
        this.#waiters.delete(waiter);
        if (result instanceof TuttiError) reject(result);
        else resolve(result);
        return true;
      };
      const waiter: Waiter = { tenant, models, worker: id, kind, settle };
      const give = () => void settle(undefined);
      // A claim that does not wait still asks once: its time begins when it was served.
      const cancelWait = body.waitMs > 0 ? this.#deps.clock.after(body.waitMs, give) : undefined;
      if (signal.aborted) return give();
      signal.addEventListener('abort', give, { once: true });
      this.#waiters.add(waiter);
      this.wake(body.waitMs > 0 ? undefined : () => settle(undefined));
      return undefined;
    });
  }

  /** Something may have been queued. `after` is called when everybody who waits now was looked after. */
  wake(after?: () => void): void {
    if (after) this.#afters.push(after);
    if (this.#serving) {
      this.#again = true;
      return;
    }
    if (this.#waiters.size > 0) void this.#serve();
    else this.#done();
  }

  /** Everybody who waits is told that there is nothing. */
  drain(): void {
    this.#draining = true;
    this.#stopPoll?.();
    for (const waiter of this.#waiters) waiter.settle(undefined);
  }

  close(): void {
    this.drain();
    for (const channel of this.#channels.keys()) this.#deps.bus.unsubscribe(channel);
    this.#channels.clear();
  }

  #boundKinds(worker: string, kind: string): void {
    const kinds = new Set([kind]);
    for (const waiter of this.#waiters) if (waiter.worker === worker) kinds.add(waiter.kind);
    if (kinds.size > KINDS_PER_KEY_MAX) {
      throw new TuttiError('overloaded', `A key waits for at most ${KINDS_PER_KEY_MAX} different lists of models.`, {
        retryAfterMs: FULL_RETRY_MS,
        limit: 'claims_waiting',
      });
    }
  }

  async #serve(): Promise<void> {
    this.#serving = true;
    do {
      this.#again = false;
      const afters = this.#afters.splice(0);
      const empty = new Set<string>();
      for (const waiter of this.#waiters) {
        if (!empty.has(waiter.kind) && !(await this.#serveOne(waiter))) empty.add(waiter.kind);
      }
      for (const after of afters) after();
    } while (this.#again && this.#waiters.size > 0);
    this.#serving = false;
    this.#done();
  }

  #done(): void {
    for (const after of this.#afters.splice(0)) after();
  }

  /** @returns `false` where there is nothing for waiters of this kind. */
  async #serveOne(waiter: Waiter): Promise<boolean> {
    const { store, limits, clock, log } = this.#deps;
    const { tenant, models, worker } = waiter;
    const asked = clock.monotonic();
    let found: { run: StoredRun; input: unknown } | undefined;
    try {
      found = await store.claim({
        tenant,
        models,
        worker,
        leaseMs: limits.leaseMs,
        durationMaxMs: limits.durationMaxMs,
      });
    } catch (error) {
      log.warn({ err: error }, 'A claim failed.');
      waiter.settle(
        error instanceof TuttiError ? error : new TuttiError('internal', 'Internal error.', { cause: error }),
      );
      return false;
    }
    if (!found) return false;
    const claimed = { ...found, asked };
    if (waiter.settle(claimed)) return true;
    // The worker vanished while it was served: the run is another's who waits, or goes back.
    for (const other of this.#waiters) if (other.kind === waiter.kind && other.settle(claimed)) return true;
    await this.#giveBack(found.run).catch((error) => log.warn({ err: error }, 'A run could not be given back.'));
    return true;
  }

  #subscribe(channel: RoomKey): void {
    if (!this.#channels.has(channel)) void this.#deps.bus.subscribe(channel);
    this.#channels.set(channel, this.#deps.clock.monotonic());
  }

  #unsubscribe(): void {
    const now = this.#deps.clock.monotonic();
    for (const { tenant } of this.#waiters) this.#channels.set(channelOf(tenant), now);
    for (const [channel, used] of this.#channels) {
      if (now - used < LINGER_MS) continue;
      this.#channels.delete(channel);
      this.#deps.bus.unsubscribe(channel);
    }
  }
}
