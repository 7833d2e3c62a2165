import { pauseBeforeReturn, spread } from '../core/departure.js';
import type { Held, TokenBucket } from '../core/limits.js';
import type { Principal } from '../core/principal.js';
import type { Logger } from '../core/telemetry.js';
import { TuttiError } from '../errors.js';
import { encodePush } from '../protocol/frames.js';
import { type Closing, type Connection, endConnection, type Link } from './link.js';
import { SocketViewer } from './viewer.js';

/** What a session has used of its rate. Made at its first command: most sessions only read. */
export interface Spent {
  bucket: TokenBucket;
  /** Start of the second in which refusals are counted, ms. */
  refusedSince: number;
  refused: number;
}

/**
 * `admitted`: verified and counted, its socket about to connect. `leaving`: begins nothing new, waits for its last answers.
 * `closing`: told why, its socket about to close.
 */
export type SessionState = 'admitted' | 'active' | 'leaving' | 'closing' | 'closed';

/** The authenticated state on a connection. Holds no timer and no closure of its own: thousands of them idle. */
export class Session {
  state: SessionState = 'admitted';
  principal: Principal;
  /** The session as a reader of rooms. */
  readonly viewer: SocketViewer;
  spent: Spent | undefined;
  /** Commands that wait for their answer. */
  readonly inFlight: Held = { count: 0, bytes: 0 };
  /** Called when no command waits for its answer any more. */
  answered: (() => void) | undefined;
  #noticed = false;

  constructor(
    readonly id: string,
    readonly namespace: '/' | '/worker',
    principal: Principal,
    readonly link: Link,
    readonly connection: Connection,
    private readonly release: () => void,
  ) {
    this.principal = principal;
    this.viewer = new SocketViewer(id, link);
  }

  /** What a log line says of the session. */
  get fields(): { session: string; tenant: string | null; principal: string } {
    return { session: this.id, tenant: this.principal.tenant, principal: this.principal.id };
  }

  /** Tells the session why and ends its connection; later calls change nothing. */
  end(closing: Closing): void {
    if (this.state === 'closing' || this.state === 'closed') return;
    this.state = 'closing';
    endConnection(this.link, this.connection, this.namespace, closing);
  }

  /** Ends it likewise, but not before every command it has sent is answered, unless that takes longer than `withinMs`. */
  async leave(closing: Closing, withinMs: number): Promise<void> {
    if (this.state === 'active' && this.inFlight.count > 0) {
      this.state = 'leaving';
      await new Promise<void>((resolve) => {
        const late = setTimeout(resolve, withinMs);
        this.answered = () => {
          clearTimeout(late);
          resolve();
        };
      });
    }
    this.end(closing);
  }

  /** The socket is gone. @returns `false` where that was known. */
  closed(): boolean {
    if (this.state === 'closed') return false;
    this.state = 'closed';
    this.answered?.();
    this.link.namespaces.delete(this.namespace);
    if (this.namespace === '/') {
      this.link.answerRefused();
      this.link.refusal = undefined;
      this.link.gate = undefined;
    }
    this.release();
    return true;
  }

  /**
   * Goes on under a later token.
   * @throws TuttiError `forbidden` for a token of somebody else.
   */
  refresh(principal: Principal): void {
    if (principal.id !== this.principal.id || principal.tenant !== this.principal.tenant) {
      throw new TuttiError('forbidden', 'A session can only be refreshed by a token of the same user and tenant.');
    }
    this.principal = principal;
    this.#noticed = false;
  }

  /** Says `session.expiring` once when the end is near, and ends the session when its grace is over. */
  checkExpiry(now: number, noticeMs: number, graceMs: number): void {
    const { expiresAt } = this.principal;
    if (expiresAt === undefined || this.state !== 'active') return;
    if (now >= expiresAt + graceMs) {
      this.end({ code: 'token_expired', message: 'The token ended; connect with a new one.', reconnect: false });
    } else if (now >= expiresAt - noticeMs && !this.#noticed) {
      this.#noticed = true;
      this.link.send(encodePush('session.expiring', { expiresAt }));
    }
  }
}

export interface SessionTimes {
  /** How long before its token ends a session is told, in ms. */
  noticeMs: number;
  /** How long a session outlives its token, in ms. */
  graceMs: number;
}

/** How often expiry is looked for, in ms: one timer for all sessions. */
const SWEEP_MS = 1000;
/** How long a session that is to move waits for its last answers, at most, in ms. */
const ANSWERS_MS = 2000;

/** All sessions of this gateway, of both namespaces. */
export class Sessions {
  readonly #sessions = new Set<Session>();
  #timer: NodeJS.Timeout | undefined;

  constructor(
    private readonly times: SessionTimes,
    private readonly log: Logger,
  ) {}

  get size(): number {
    return this.#sessions.size;
  }

  /** Starts the sweep for ended tokens. */
  start(): void {
    this.#timer ??= setInterval(() => {
      const now = Date.now();
      for (const session of this.#sessions) session.checkExpiry(now, this.times.noticeMs, this.times.graceMs);
    }, SWEEP_MS);
    this.#timer.unref();
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  add(session: Session): void {
    this.#sessions.add(session);
  }

  delete(session: Session): void {
    this.#sessions.delete(session);
  }

  /** Ends every session whose principal `matches`. */
  endWhere(matches: (principal: Principal) => boolean, closing: Closing): void {
    for (const session of this.#sessions) {
      if (!matches(session.principal)) continue;
      this.log.info({ ...session.fields, code: closing.code }, 'session ended');
      session.end(closing);
    }
  }

  /**
   * Asks all sessions to move to another gateway, spread over at most `withinMs`, each with its own delay before it
   * reconnects, so that the others meet no storm, and with an answer to all it has asked. Resolves once all are told and their
   * connections closed.
   */
  async dismiss(withinMs: number): Promise<void> {
    const answersMs = Math.min(ANSWERS_MS, withinMs / 3);
    const left: Promise<void>[] = [];
    await spread(this.#sessions, withinMs - answersMs, (session) => {
      const closing = {
        code: 'draining',
        message: 'This gateway is leaving; connect again.',
        reconnect: true,
        afterMs: pauseBeforeReturn(),
      } as const;
      left.push(session.leave(closing, answersMs));
    });
    await Promise.all(left);
    await new Promise((resolve) => setImmediate(resolve));
  }
}
