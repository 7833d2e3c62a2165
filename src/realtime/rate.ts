import { TokenBucket, TokenBuckets } from '../core/limits.js';
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
const FLOOD_FACTOR = 5;
const FLOOD_WINDOW_MS = 1000;
/** Least time a refusal tells to wait, in ms: until then a session is refused unread, so that a flood costs little. */
const RETRY_MIN_MS = 100;
/** Rate limits of commands, per session and per tenant. */
export class CommandLimits {
  readonly #tenants: TokenBuckets;

  constructor(
    private readonly rates: CommandRates,
    private readonly metrics: Metrics,
  ) {
    this.#tenants = new TokenBuckets(rates.perTenant, rates.perTenant * 2);
  }

  /** @throws TuttiError `rate_limited` with `retryAfterMs`. Ends a session that goes on regardless. */
  take(session: Session): void {
    const spent = this.#spentBy(session);
    const own = spent.bucket.take();
    if (own > 0) this.#refuse(session, spent, 'session', own);
    const { tenant } = session.principal;
    if (tenant === null) return;
    const shared = this.#tenants.take(tenant);
    if (shared > 0) this.#refuse(session, spent, 'tenant', shared);
  }

  #refuse(session: Session, spent: Spent, scope: 'session' | 'tenant', waitMs: number): never {
    const retryAfterMs = Math.max(RETRY_MIN_MS, waitMs);
    const refusal = new TuttiError('rate_limited', `Too many commands of this ${scope}.`, { retryAfterMs });
    this.metrics.add('rate_limited', { scope });
    this.#count(session, spent, refusal.message);
    if (session.namespace === '/' && session.state === 'active') {
      session.link.answerRefused();
      session.link.refusal = {
        until: performance.now() + retryAfterMs,
        answer: `[{"ok":false,"error":${JSON.stringify(refusal.toWire())}}]`,
        more: () => this.#count(session, spent, refusal.message),
        answered: (count) => {
          this.metrics.add('rate_limited', { scope }, count);
          this.metrics.add('commands', { command: 'unknown', code: 'rate_limited' }, count);
        },
      };
    }
    throw refusal;
  }

  #count(session: Session, spent: Spent, message: string): void {
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
}
