import { TokenBuckets } from '../core/limits.js';
import type { Principal } from '../core/principal.js';
import type { Metrics } from '../core/telemetry.js';
import { TuttiError } from '../errors.js';

/** Requests per second of a principal and of its tenant on this gateway, each with twice as many in a burst. */
export class Rates {
  readonly #principals: TokenBuckets;
  readonly #tenants: TokenBuckets;
  readonly #metrics: Metrics;

  constructor(limits: { commandsPerSecond: number; tenantCommandsPerSecond: number }, metrics: Metrics) {
    this.#principals = new TokenBuckets(limits.commandsPerSecond, 2 * limits.commandsPerSecond, metrics);
    this.#tenants = new TokenBuckets(limits.tenantCommandsPerSecond, 2 * limits.tenantCommandsPerSecond, metrics);
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
