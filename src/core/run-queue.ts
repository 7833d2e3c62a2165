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
  readonly worker: string;
  readonly kind: Kind;
  /** Its place among all who wait. */
  readonly order: number;
  /** @returns whether somebody was still there to take it. */
  settle(result: Claimed | undefined | TuttiError): boolean;
}

/** Waiters that can take each other's runs, because they ask for the same models of the same tenant. Gone with the last. */
interface Kind {
  readonly name: string;
  readonly tenant: string | null;
  readonly models: readonly string[];
  /** In the order they came. */
  readonly waiters: Set<Waiter>;
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

/** The first waiters of some kinds, who came first before who came later. No step looks at those behind them. */
class Line {
  /** The next to be served last. */
  readonly #first: Waiter[] = [];

  constructor(kinds: Iterable<Kind>) {
    for (const { waiters } of kinds) {
      const [waiter] = waiters;
      if (waiter) this.#first.push(waiter);
    }
    this.#first.sort((a, b) => b.order - a.order);
  }

  /** The first waiter of a kind that is not in the line. */
  add({ waiters }: Kind): void {
    const [waiter] = waiters;
    if (!waiter) return;
    let [low, high] = [0, this.#first.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#first[middle]?.order ?? 0) > waiter.order) low = middle + 1;
      else high = middle;
    }
    this.#first.splice(low, 0, waiter);
  }

  /** Who is next, and leaves the line with its kind. One who has gone meanwhile makes room for the next of its kind. */
  shift(): Waiter | undefined {
    for (let next = this.#first.pop(); next; next = this.#first.pop()) {
      if (next.kind.waiters.has(next)) return next;
      this.add(next.kind);
    }
    return undefined;
  }
}

/** Claims that wait for a run, first come, first served; woken by hints, with a poll for the hints that are lost. */
export class RunQueue {
  readonly #deps: QueueDeps;
  readonly #giveBack: (run: StoredRun) => Promise<void>;
  readonly #kinds = new Map<string, Kind>();
  /** How many of a key's claims wait for each kind. */
  readonly #kindsOfKeys = new Map<string, Map<Kind, number>>();
  /** Kinds to look for a run for. */
  #due = new Set<Kind>();
  #waiting = 0;
  #order = 0;
  readonly #channels = new Map<RoomKey, number>();
  #afters: (() => void)[] = [];
  #serving = false;
  #stopPoll: (() => void) | undefined;
  #draining = false;

  /** `giveBack` gets a run that nobody was left to take. */
  constructor(deps: QueueDeps, giveBack: (run: StoredRun) => Promise<void>) {
    this.#deps = deps;
    this.#giveBack = giveBack;
    deps.metrics.gauge('claims_waiting', () => this.#waiting);
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
    if (this.#waiting >= this.#deps.limits.claimsWaitingMax) {
      throw new TuttiError('overloaded', 'Too many workers wait for a run at this gateway; ask another, or later.', {
        retryAfterMs: FULL_RETRY_MS,
        limit: 'claims_waiting',
      });
    }
    const { tenant, id } = worker;
    const models = [...new Set(body.models)].sort();
    const name = `${tenant ?? '*'} ${models.join(' ')}`;
    const kind = this.#kinds.get(name) ?? { name, tenant, models, waiters: new Set() };
    this.#boundKinds(id, kind);
    this.#subscribe(channelOf(tenant));
    return new Promise((resolve, reject) => {
      let open = true;
      const settle = (result: Claimed | undefined | TuttiError) => {
        if (!open) return false;
        open = false;
        cancelWait?.();
        signal.removeEventListener('abort', give);
        this.#remove(waiter);
        if (result instanceof TuttiError) reject(result);
        else resolve(result);
        return true;
      };
      const waiter: Waiter = { worker: id, kind, order: this.#order++, settle };
      const give = () => void settle(undefined);
      // A claim that does not wait still asks once: its time begins when it was served.
      const cancelWait = body.waitMs > 0 ? this.#deps.clock.after(body.waitMs, give) : undefined;
      if (signal.aborted) return give();
      signal.addEventListener('abort', give, { once: true });
      this.#add(waiter);
      this.#look([kind], body.waitMs > 0 ? undefined : () => settle(undefined));
      return undefined;
    });
  }

  /** Something may have been queued. */
  wake(): void {
    this.#look(this.#kinds.values());
  }

  /** Everybody who waits is told that there is nothing. */
  drain(): void {
    this.#draining = true;
    this.#stopPoll?.();
    for (const { waiters } of this.#kinds.values()) for (const waiter of waiters) waiter.settle(undefined);
  }

  close(): void {
    this.drain();
    for (const channel of this.#channels.keys()) this.#deps.bus.unsubscribe(channel);
    this.#channels.clear();
  }

  #boundKinds(worker: string, kind: Kind): void {
    const kinds = this.#kindsOfKeys.get(worker);
    if (kinds && !kinds.has(kind) && kinds.size >= KINDS_PER_KEY_MAX) {
      throw new TuttiError('overloaded', `A key waits for at most ${KINDS_PER_KEY_MAX} different lists of models.`, {
        retryAfterMs: FULL_RETRY_MS,
        limit: 'claims_waiting',
      });
    }
  }

  #add(waiter: Waiter): void {
    const { worker, kind } = waiter;
    this.#kinds.set(kind.name, kind);
    kind.waiters.add(waiter);
    const kinds = this.#kindsOfKeys.get(worker) ?? new Map<Kind, number>();
    this.#kindsOfKeys.set(worker, kinds.set(kind, (kinds.get(kind) ?? 0) + 1));
    this.#waiting += 1;
  }

  #remove(waiter: Waiter): void {
    const { worker, kind } = waiter;
    if (!kind.waiters.delete(waiter)) return;
    this.#waiting -= 1;
    if (kind.waiters.size === 0) this.#kinds.delete(kind.name);
    const kinds = this.#kindsOfKeys.get(worker);
    const left = (kinds?.get(kind) ?? 0) - 1;
    if (left > 0) kinds?.set(kind, left);
    else kinds?.delete(kind);
    if (kinds?.size === 0) this.#kindsOfKeys.delete(worker);
  }

  /** `after` is called when everybody of these kinds who waits now was looked after. */
  #look(kinds: Iterable<Kind>, after?: () => void): void {
    for (const kind of kinds) this.#due.add(kind);
    if (after) this.#afters.push(after);
    if (!this.#serving) void this.#serve();
  }

  async #serve(): Promise<void> {
    this.#serving = true;
    while (this.#due.size > 0 || this.#afters.length > 0) {
      const line = new Line(this.#due);
      this.#due = new Set();
      const afters = this.#afters.splice(0);
      for (let next = line.shift(); next; next = line.shift()) {
        if (await this.#serveOne(next)) line.add(next.kind);
      }
      for (const after of afters) after();
    }
    this.#serving = false;
  }

  /** @returns `false` where there is nothing for waiters of this kind. */
  async #serveOne(waiter: Waiter): Promise<boolean> {
    const { store, limits, clock, log } = this.#deps;
    const { worker, kind } = waiter;
    const { tenant, models } = kind;
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
    for (const other of kind.waiters) if (other.settle(claimed)) return true;
    await this.#giveBack(found.run).catch((error) => log.warn({ err: error }, 'A run could not be given back.'));
    return true;
  }

  #subscribe(channel: RoomKey): void {
    if (!this.#channels.has(channel)) void this.#deps.bus.subscribe(channel);
    this.#channels.set(channel, this.#deps.clock.monotonic());
  }

  #unsubscribe(): void {
    const now = this.#deps.clock.monotonic();
    for (const { tenant } of this.#kinds.values()) this.#channels.set(channelOf(tenant), now);
    for (const [channel, used] of this.#channels) {
      if (now - used < LINGER_MS) continue;
      this.#channels.delete(channel);
      this.#deps.bus.unsubscribe(channel);
    }
  }
}
