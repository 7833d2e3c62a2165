import type { Principal } from '../core/principal.js';
import { TuttiError } from '../errors.js';
import type { Exchange } from './exchange.js';
import type { ConnectionsPort, RevocationsPort } from './ports.js';
import { refuse } from './problem.js';

/** How often ended tokens are looked for, in ms: one timer for all requests. */
const SWEEP_MS = 1000;

/**
 * Requests that last, and whose they are: a stream, a claim that waits, a body that stays open. Their credential was
 * good when they began; they end when it ends or is revoked (AUTH3).
 */
export class Standing {
  readonly #held = new Map<Exchange, Principal>();
  readonly #connections: ConnectionsPort | undefined;
  readonly #timer: NodeJS.Timeout;

  /** `tokenGraceMs` is how long a request outlives its token. */
  constructor(deps: {
    connections: ConnectionsPort | undefined;
    revocations: RevocationsPort | undefined;
    tokenGraceMs: number;
  }) {
    this.#connections = deps.connections;
    deps.revocations?.onRevoked((revocation) => {
      const revoked = (principal: Principal) => deps.revocations?.applies(revocation, principal) === true;
      this.#end(revoked, new TuttiError('unauthenticated', 'This credential was revoked.'));
    });
    this.#timer = setInterval(() => {
      const before = Date.now() - deps.tokenGraceMs;
      const ended = ({ expiresAt }: Principal) => expiresAt !== undefined && expiresAt <= before;
      this.#end(ended, new TuttiError('token_expired', 'Your token has ended.'));
    }, SWEEP_MS);
    this.#timer.unref();
  }

  /** Counts the request as a session and watches its credential until it is finished. @throws TuttiError `quota_exceeded` */
  hold(exchange: Exchange, principal: Principal): void {
    const release = this.#connections?.admit(principal);
    this.#held.set(exchange, principal);
    exchange.onFinished(() => {
      this.#held.delete(exchange);
      release?.();
    });
  }

  get size(): number {
    return this.#held.size;
  }

  /** Ends all that is left. */
  close(error: TuttiError): void {
    clearInterval(this.#timer);
    this.#end(() => true, error);
  }

  #end(which: (principal: Principal) => boolean, error: TuttiError): void {
    for (const [exchange, principal] of [...this.#held]) {
      if (!which(principal)) continue;
      if (exchange.open) refuse(exchange, { error });
      else exchange.end();
    }
  }
}
