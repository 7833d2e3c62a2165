import { TuttiError } from '../errors.js';
import type { MemoryGuard } from './memory.js';
import type { Principal } from './principal.js';
import { countLimit, type Metrics } from './telemetry.js';

/** How long a bucket that had too few tokens is taken to be short of them, in ms. */
const SHORT_MS = 1000;
/** Buckets of one kind; past that the least recently used goes, which only makes its owner's burst whole again. */
const BUCKETS_KEPT = 10_000;

/**
 * A token bucket: `perSecond` on average, `burst` at once. No timer and no state elsewhere; it ends with the object
 * that holds it.
 */
export class TokenBucket {
  #tokens: number;
  #at: number;
  #shortAt = Number.NEGATIVE_INFINITY;

  /** @param now a clock in ms that never goes back */
  constructor(
    private readonly perSecond: number,
    private readonly burst: number,
    private readonly now: () => number = () => performance.now(),
  ) {
    this.#tokens = burst;
    this.#at = now();
  }

  /** Takes `n` tokens. @returns 0 where they were taken; else nothing was, and in so many ms they would be there. */
  take(n = 1): number {
    const waitMs = this.#waitMs(n);
    if (waitMs === 0) this.#tokens -= n;
    return waitMs;
  }

  /**
   * Foretells what {@link take} will return to one who comes after `ahead` others that have not taken theirs yet. Those count only while
   * tokens run short: else there will be more of them when the others have come, however long that takes.
   */
  expect(ahead: number): number {
    return this.#waitMs(this.now() - this.#shortAt < SHORT_MS ? ahead + 1 : 1);
  }

  #waitMs(n: number): number {
    const at = this.now();
    const earned = (Math.max(0, at - this.#at) / 1000) * this.perSecond;
    this.#tokens = Math.min(this.burst, this.#tokens + earned);
    this.#at = at;
    if (this.#tokens >= n) return 0;
    this.#shortAt = at;
    return Math.max(1, Math.ceil(((n - this.#tokens) / this.perSecond) * 1000));
  }
}

/** Token buckets by key. */
export class TokenBuckets {
  readonly #buckets = new Map<string, TokenBucket>();

  constructor(
    private readonly perSecond: number,
    private readonly burst: number,
    private readonly metrics: Metrics,
  ) {}

  /** Takes a token of a key. @returns as {@link TokenBucket.take} */
  take(key: string): number {
    return this.#bucket(key).take();
  }

  /** Foretells for a key. @returns as {@link TokenBucket.expect} */
  expect(key: string, ahead: number): number {
    return this.#bucket(key).expect(ahead);
  }

  #bucket(key: string): TokenBucket {
    const bucket = this.#buckets.get(key) ?? new TokenBucket(this.perSecond, this.burst);
    this.#buckets.delete(key);
    this.#buckets.set(key, bucket);
    if (this.#buckets.size > BUCKETS_KEPT) {
      const [oldest] = this.#buckets.keys();
      if (oldest !== undefined) this.#buckets.delete(oldest);
      countLimit(this.metrics, 'rate_buckets');
    }
    return bucket;
  }
}

/** Most sessions of one gateway, of one tenant on it, and of one user of a tenant on it. */
export interface ConnectionLimit {
  total: number;
  perTenant: number;
  perUser: number;
}

/** Counts sessions. Keys (servers and workers) count for their tenant and the gateway, not as users. */
export class ConnectionLimits {
  #total = 0;
  readonly #tenants = new Map<string, number>();
  readonly #users = new Map<string, number>();

  constructor(
    private readonly limit: ConnectionLimit,
    private readonly memory?: MemoryGuard,
  ) {}

  /**
   * Counts one session in.
   * @returns the release; calling it again does nothing
   * @throws TuttiError `overloaded` where the gateway is full or short of memory, `quota_exceeded` where the tenant or
   * the user is
   */
  admit(principal: Principal): () => void {
    this.memory?.check();
    const { tenant } = principal;
    const user = principal.kind === 'user' && tenant !== null ? `${tenant}:${principal.id}` : undefined;
    if (this.#total >= this.limit.total) {
      throw new TuttiError('overloaded', 'This gateway is full.', { retryAfterMs: 1000, limit: 'connections' });
    }
    if (tenant !== null && (this.#tenants.get(tenant) ?? 0) >= this.limit.perTenant) {
      const message = `Your tenant has ${this.limit.perTenant} sessions open here, which is its limit.`;
      throw new TuttiError('quota_exceeded', message, { limit: 'sessions_tenant' });
    }
    if (user !== undefined && (this.#users.get(user) ?? 0) >= this.limit.perUser) {
      const message = `You have ${this.limit.perUser} sessions open, which is your limit: close one.`;
      throw new TuttiError('quota_exceeded', message, { limit: 'sessions_user' });
    }
    this.#total += 1;
    if (tenant !== null) count(this.#tenants, tenant, 1);
    if (user !== undefined) count(this.#users, user, 1);
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      this.#total -= 1;
      if (tenant !== null) count(this.#tenants, tenant, -1);
      if (user !== undefined) count(this.#users, user, -1);
    };
  }
}

/** Most that may wait for its answer: commands of one session, their bytes, and the bytes of one tenant here. */
export interface InFlightLimit {
  perSession: number;
  bytesPerSession: number;
  bytesPerTenant: number;
}

/** What one session, or one principal over HTTP, has waiting for an answer. */
export interface Held {
  count: number;
  bytes: number;
}

/** Bounds what commands and requests hold in memory until they are answered, however fast they are sent. */
export class InFlight {
  #bytes = 0;
  readonly #tenants = new Map<string, number>();

  constructor(private readonly limit: InFlightLimit) {}

  /** Of all tenants. */
  get bytes(): number {
    return this.#bytes;
  }

  /**
   * Counts a command in; {@link end} with the same arguments counts it out. `bytes` is its length as it arrived.
   * @throws TuttiError `overloaded`; nothing was counted then
   */
  begin(own: Held, tenant: string | null, bytes: number): void {
    const { perSession, bytesPerSession, bytesPerTenant } = this.limit;
    if (own.count >= perSession) {
      throw new TuttiError('overloaded', `${perSession} of your commands wait for their answer: wait for some.`, {
        retryAfterMs: 100,
        limit: 'in_flight_session',
      });
    }
    // One is always let in, whatever its size: that is bounded elsewhere.
    if (own.count > 0 && own.bytes + bytes > bytesPerSession) {
      throw new TuttiError('overloaded', `More than ${bytesPerSession} bytes of yours wait for their answer.`, {
        retryAfterMs: 100,
        limit: 'in_flight_bytes_session',
      });
    }
    const tenants = tenant === null ? 0 : (this.#tenants.get(tenant) ?? 0);
    if (tenants > 0 && tenants + bytes > bytesPerTenant) {
      throw new TuttiError('overloaded', `More than ${bytesPerTenant} bytes of your tenant wait for their answer.`, {
        retryAfterMs: 250,
        limit: 'in_flight_bytes_tenant',
      });
    }
    this.#count(own, tenant, 1, bytes);
  }

  end(own: Held, tenant: string | null, bytes: number): void {
    this.#count(own, tenant, -1, bytes);
  }

  #count(own: Held, tenant: string | null, by: 1 | -1, bytes: number): void {
    own.count += by;
    own.bytes += by * bytes;
    this.#bytes += by * bytes;
    if (tenant !== null) count(this.#tenants, tenant, by * bytes);
  }
}

function count(counts: Map<string, number>, key: string, by: number): void {
  const next = (counts.get(key) ?? 0) + by;
  if (next > 0) counts.set(key, next);
  else counts.delete(key);
}
