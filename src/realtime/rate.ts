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
    this.#tenants = new TokenBuckets(rates.perTenant, rates.perTenant * 2, metrics);
  }

  /** @throws TuttiError `rate_limited` with `retryAfterMs`. */
  take(session: Session): void {
    this.#require('session', this.#spentBy(session).bucket.take());
    const { tenant } = session.principal;
    if (tenant !== null) this.#require('tenant', this.#tenants.take(tenant));
  }

  /** A command of the session was refused for a while: so are all others of that time, unread. Ends a session that goes on regardless. */
  refused(session: Session, refusal: TuttiError): void {
    const { link } = session;
    const count = () => this.#count(session, refusal.message);
    count();
    if (session.namespace !== '/' || session.state !== 'active') return;
    link.answerRefused();
    link.refusal = {
      until: performance.now() + (refusal.retryAfterMs ?? RETRY_MIN_MS),
      answer: `[{"ok":false,"error":${JSON.stringify(refusal.toWire())}}]`,
      more: count,
      answered: (answers) => {
        this.metrics.add('rate_limited', { scope: 'standing' }, answers);
        this.metrics.add('commands', { command: 'unknown', code: 'rate_limited' }, answers);
      },
    };
  }

  #require(scope: 'session' | 'tenant', waitMs: number): void {
    if (waitMs === 0) return;
    this.metrics.add('rate_limited', { scope });
    throw new TuttiError('rate_limited', `Too many commands of this ${scope}.`, {
      retryAfterMs: Math.max(RETRY_MIN_MS, waitMs),
    });
  }

  #count(session: Session, message: string): void {
    const spent = this.#spentBy(session);
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
