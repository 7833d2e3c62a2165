import { TokenBucket } from '../core/limits.js';
import type { Principal } from '../core/principal.js';
import type { Metrics } from '../core/telemetry.js';
import { TuttiError } from '../errors.js';

/** Buckets kept per scope; past that the least recently used goes, which only makes its owner's burst whole again. */
const KEPT = 10_000;

class Buckets {
  readonly #buckets = new Map<string, TokenBucket>();
  readonly #perSecond: number;

  constructor(perSecond: number) {
    this.#perSecond = perSecond;
  }

  /** @returns 0, or ms to wait. */
  take(key: string): number {
    const bucket = this.#buckets.get(key) ?? new TokenBucket(this.#perSecond, 2 * this.#perSecond);
    this.#buckets.delete(key);
    this.#buckets.set(key, bucket);
    if (this.#buckets.size > KEPT) {
      const [oldest] = this.#buckets.keys();
      if (oldest !== undefined) this.#buckets.delete(oldest);
    }
    return bucket.take();
  }
}

/** Requests per second of a principal and of its tenant on this gateway, each with twice as many in a burst. */
export class Rates {
  readonly #principals: Buckets;
  readonly #tenants: Buckets;
  readonly #metrics: Metrics;

  constructor(limits: { commandsPerSecond: number; tenantCommandsPerSecond: number }, metrics: Metrics) {
    this.#principals = new Buckets(limits.commandsPerSecond);
    this.#tenants = new Buckets(limits.tenantCommandsPerSecond);
    this.#metrics = metrics;
  }

  /** @throws TuttiError `rate_limited` with the time to wait. */
  check(principal: Principal): void {
    const tenant = principal.tenant ?? '';
    this.#refuse('principal', this.#principals.take(`${tenant} ${principal.kind} ${principal.id}`));
    this.#refuse('tenant', this.#tenants.take(tenant));
  }

  #refuse(scope: string, waitMs: number): void {
    if (waitMs === 0) return;
    this.#metrics.add('rate_limited', { scope });
    throw new TuttiError('rate_limited', 'Too many requests.', { retryAfterMs: Math.ceil(waitMs) });
  }
}
