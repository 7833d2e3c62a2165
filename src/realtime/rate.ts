import { TokenBucket } from '../core/limits.js';
import type { Metrics } from '../core/telemetry.js';
import { TuttiError } from '../errors.js';
import type { Session, Spent } from './session.js';

export interface CommandRates {
  /** Commands per second of one session; twice as many in a burst. */
  perSession: number;
  /** Commands per second of all sessions of a tenant here; twice as many in a burst. */
  perTenant: number;
}

/** A session that is refused this many times its rate within a second is closed. */
const FLOOD_FACTOR = 10;
const FLOOD_WINDOW_MS = 1000;
/** An unused bucket of two seconds' worth is full after this. */
const REFILL_MS = 2000;

/** Rate limits of commands, per session and per tenant. */
export class CommandLimits {
  readonly #tenants = new Map<string, { bucket: TokenBucket; usedAt: number }>();

  constructor(
    private readonly rates: CommandRates,
    private readonly metrics: Metrics,
  ) {}

  /** @throws TuttiError `rate_limited` with `retryAfterMs`. Ends a session that goes on regardless. */
  take(session: Session): void {
    const spent = this.#spentBy(session);
    const own = spent.bucket.take();
    if (own > 0) this.#refuse(session, spent, 'session', own);
    const { tenant } = session.principal;
    if (tenant === null) return;
    const shared = this.#bucketOf(tenant).take();
    if (shared > 0) this.#refuse(session, spent, 'tenant', shared);
  }

  /** Forgets tenants that were idle for so long that their buckets are full, as a new one is. Call now and then. */
  sweep(now: number): void {
    for (const [tenant, { usedAt }] of this.#tenants) if (now - usedAt > REFILL_MS) this.#tenants.delete(tenant);
  }

  #refuse(session: Session, spent: Spent, scope: 'session' | 'tenant', retryAfterMs: number): never {
    const message = `Too many commands of this ${scope}.`;
    const refusal = new TuttiError('rate_limited', message, { retryAfterMs });
    this.#count(session, spent, scope, message);
    if (scope === 'session' && session.namespace === '/') {
      session.link.refusal = {
        until: performance.now() + retryAfterMs,
        answer: `[{"ok":false,"error":${JSON.stringify(refusal.toWire())}}]`,
        count: () => {
          this.#count(session, spent, scope, message);
          this.metrics.add('commands', { command: 'unknown', code: 'rate_limited' });
        },
      };
    }
    throw refusal;
  }

  #count(session: Session, spent: Spent, scope: 'session' | 'tenant', message: string): void {
    this.metrics.add('rate_limited', { scope });
    const now = performance.now();
    if (now - spent.refusedSince >= FLOOD_WINDOW_MS) {
      spent.refusedSince = now;
      spent.refused = 0;
    }
    spent.refused += 1;
    if (spent.refused > this.rates.perSession * FLOOD_FACTOR) {
      session.end({ code: 'rate_limited', message, reconnect: true, afterMs: FLOOD_WINDOW_MS });
    }
  }

  #spentBy(session: Session): Spent {
    const { perSession } = this.rates;
    session.spent ??= { bucket: new TokenBucket(perSession, perSession * 2), refusedSince: 0, refused: 0 };
    return session.spent;
  }

  #bucketOf(tenant: string): TokenBucket {
    let entry = this.#tenants.get(tenant);
    if (!entry) {
      entry = { bucket: new TokenBucket(this.rates.perTenant, this.rates.perTenant * 2), usedAt: 0 };
      this.#tenants.set(tenant, entry);
    }
    entry.usedAt = performance.now();
    return entry.bucket;
  }
}
