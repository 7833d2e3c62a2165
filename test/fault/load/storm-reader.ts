import type { WireError } from '../../../src/errors.js';
import { Session } from '../../support/session.js';
import type { Asked } from '../history.js';
import type { Balancer } from './balancer.js';
import type { LoadTenant } from './config.js';
import type { Ledger } from './ledger.js';
import type { Answer } from './link.js';
import { askedFor, type Position, Received } from './reader.js';

export interface StormReaderOptions {
  name: string;
  tenant: LoadTenant;
  room: string;
  token: string;
  balancer: Balancer;
  random: () => number;
  answerMs: number;
}

/** Pauses of socket.io-client before it tries again: doubled from the least to the most, each by half more or less, in ms. */
const PAUSE_MIN_MS = 1000;
const PAUSE_MAX_MS = 5000;
/** A gateway that says nothing for so long is left, in ms: longer than between two heartbeats and their patience. */
const SILENCE_MS = 20_000;
/** The same before it has let the reader in. */
const GREETING_MS = 8000;
/** How a refusal begins on the wire: `44{"message":…,"data":{"code":…,"retryAfterMs":…}}`. */
const REFUSED = '44';

interface Joined {
  position: Position;
  resync?: { reason: string };
}

/**
 * One reader of a storm: a {@link Session}, thousands of which cost one process little. It writes down what any reader does,
 * and comes back by itself, from its position, when socket.io-client would.
 */
export class StormReader {
  readonly #options: StormReaderOptions;
  readonly #received: Received;
  readonly #raw: (text: unknown) => void;
  #session: Session | undefined;
  #joined = false;
  #returned = false;
  #over = false;
  #gateway = '';
  #attempt = 0;
  #afterMs = 0;
  #askedAt = 0;
  #asked: Asked = 'latest';
  #timer: NodeJS.Timeout | undefined;

  constructor(ledger: Ledger, options: StormReaderOptions) {
    const { name, tenant, room } = options;
    this.#options = options;
    this.#received = new Received(ledger, name, tenant.id, room);
    this.#raw = ledger.searchFor(tenant.id, name, 'storm');
  }

  get joined(): boolean {
    return this.#joined;
  }

  /** Whether it has joined again since it was cut. */
  get returned(): boolean {
    return this.#returned;
  }

  /** Events known to be in the room that it has not handled. */
  get behind(): number {
    return this.#received.behind;
  }

  open(): void {
    void this.#connect();
  }

  /** The TCP connection is gone. */
  cut(): void {
    const session = this.#session;
    this.#returned = false;
    this.#lost('cut');
    session?.close();
  }

  /** `now` is ms as of `Date.now()`. */
  tick(now: number): void {
    this.#received.flush();
    if (this.#askedAt > 0 && now - this.#askedAt > this.#options.answerMs) this.#session?.close();
  }

  /** Leaves of its own will. */
  leave(): void {
    this.#received.gone('left');
    this.#joined = false;
    this.close();
  }

  /** Is gone without having left: it is held to have been given everything. */
  close(): void {
    this.#over = true;
    clearTimeout(this.#timer);
    this.#received.flush();
    const session = this.#session;
    this.#session = undefined;
    session?.close();
  }

  async #connect(): Promise<void> {
    try {
      const session = await this.#reach();
      if (this.#over) return session.close();
      session.wire.closeAfter(SILENCE_MS);
      session.wire.onClose = () => {
        if (this.#session === session) this.#lost('closed');
      };
      session.onPush = (buffer, start, end) => {
        if (this.#session === session) this.#pushed(buffer.toString('utf8', start, end));
      };
      session.onAck = (buffer, start, end) => {
        if (this.#session === session) this.#answered(buffer.toString('utf8', start, end));
      };
      this.#session = session;
      this.#ask(session);
    } catch (error) {
      const text = error instanceof Error ? error.message : '';
      this.#raw(text);
      this.#afterMs = Number(/"retryAfterMs":(\d+)/.exec(text)?.[1] ?? 0);
      this.#later();
    }
  }

  /** A session at any gateway that is there: as a balancer does, it passes over those where nobody listens. */
  async #reach(): Promise<Session> {
    const { balancer, token } = this.#options;
    let nobody: unknown;
    for (const gateway of balancer.order()) {
      this.#gateway = gateway.name;
      const port = Number(new URL(gateway.url).port);
      try {
        return await Session.open({ port, auth: { token }, silenceMs: GREETING_MS });
      } catch (error) {
        if (!(error instanceof Error) || error.message.startsWith(REFUSED)) throw error;
        balancer.didNotAnswer(gateway);
        if (!('code' in error) || error.code !== 'ECONNREFUSED') throw error;
        nobody = error;
      }
    }
    throw nobody;
  }

  #ask(session: Session): void {
    const { room } = this.#options;
    const from = this.#received.position ?? 'latest';
    this.#askedAt = Date.now();
    this.#asked = askedFor(from);
    session.wire.send(session.command('room.join', { room, from }));
  }

  /** The only command that is ever sent is the join. */
  #answered(text: string): void {
    this.#raw(text);
    this.#askedAt = 0;
    const [answer] = JSON.parse(text.slice(text.indexOf('['))) as [Answer];
    if (!answer.ok) {
      this.#refused(answer.error);
      return;
    }
    const { position, resync } = answer as unknown as Joined;
    this.#attempt = 0;
    this.#joined = true;
    this.#returned = true;
    this.#received.joined(this.#gateway, this.#asked, position);
    if (resync) this.#received.resynced(resync.reason, position);
  }

  /** Asks again where that may help, else as another session. */
  #refused({ retryable, retryAfterMs = 0 }: WireError): void {
    const session = this.#session;
    if (!session) return;
    if (!retryable) session.close();
    else this.#timer = setTimeout(() => this.#session === session && this.#ask(session), this.#pause(retryAfterMs));
  }

  #pushed(text: string): void {
    this.#raw(text);
    const [name, push] = JSON.parse(text.slice(2)) as [string, unknown];
    if (name === 'event') {
      const { epoch, seq, mid } = push as Position & { mid: string };
      this.#received.event(epoch, seq, mid);
    } else if (name === 'room.resync') {
      const { reason, position } = push as { reason: string; position: Position };
      this.#received.resynced(reason, position);
    } else if (name === 'session.closing') {
      this.#afterMs = (push as { afterMs?: number }).afterMs ?? 0;
    }
  }

  #lost(why: string): void {
    this.#session = undefined;
    this.#askedAt = 0;
    if (this.#joined) this.#received.gone(why);
    this.#joined = false;
    this.#later();
  }

  #later(): void {
    clearTimeout(this.#timer);
    if (!this.#over) this.#timer = setTimeout(() => this.open(), this.#pause(this.#afterMs));
    this.#afterMs = 0;
  }

  #pause(leastMs: number): number {
    const pause = Math.min(PAUSE_MAX_MS, PAUSE_MIN_MS * 2 ** this.#attempt);
    this.#attempt = Math.min(this.#attempt + 1, 8);
    return Math.max(leastMs, pause * (0.5 + this.#options.random()));
  }
}
