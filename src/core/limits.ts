import { TuttiError } from '../errors.js';
import type { Principal } from './principal.js';

/**
 * A token bucket: `perSecond` on average, `burst` at once. No timer and no state elsewhere; it ends with the object
 * that holds it.
 */
export class TokenBucket {
  #tokens: number;
  #at: number;

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
    const at = this.now();
    const earned = (Math.max(0, at - this.#at) / 1000) * this.perSecond;
    this.#tokens = Math.min(this.burst, this.#tokens + earned);
    this.#at = at;
    if (this.#tokens >= n) {
      this.#tokens -= n;
      return 0;
    }
    return Math.max(1, Math.ceil(((n - this.#tokens) / this.perSecond) * 1000));
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

  constructor(private readonly limit: ConnectionLimit) {}

  /**
   * Counts one session in.
   * @returns the release; calling it again does nothing
   * @throws TuttiError `overloaded` where the gateway is full, `quota_exceeded` where the tenant or the user is
   */
  admit(principal: Principal): () => void {
    const { tenant } = principal;
    const user = principal.kind === 'user' && tenant !== null ? `${tenant}:${principal.id}` : undefined;
    if (this.#total >= this.limit.total) {
      throw new TuttiError('overloaded', 'This gateway is full.', { retryAfterMs: 1000 });
    }
    if (tenant !== null && (this.#tenants.get(tenant) ?? 0) >= this.limit.perTenant) {
      throw new TuttiError('quota_exceeded', 'Your tenant has too many sessions open.');
    }
    if (user !== undefined && (this.#users.get(user) ?? 0) >= this.limit.perUser) {
      throw new TuttiError('quota_exceeded', 'You have too many sessions open.');
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

function count(counts: Map<string, number>, key: string, by: 1 | -1): void {
  const next = (counts.get(key) ?? 0) + by;
  if (next > 0) counts.set(key, next);
  else counts.delete(key);
}
