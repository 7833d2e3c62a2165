import { io, type Socket } from 'socket.io-client';
import type { z } from 'zod';
import type { CommandName, CommandReply, commands } from '../protocol/commands.js';
import type { Pushes, PushName } from '../protocol/pushes.js';
import { type Answer, backoffMs, Refusal, Unanswered } from '../protocol/refusal.js';
import { Emitter } from './emitter.js';

/** What a command takes, before the server parses it. */
export type CommandInput<N extends CommandName> = z.input<(typeof commands)[N]['payload']>;
export type Session = Pushes['session.ready'];

/** `waiting`: the next try is at `retryAt` (ms since the Unix epoch). `closed`: by the caller, or refused for good. */
export type ConnectionState =
  | { status: 'connecting' }
  | { status: 'connected'; session: Session }
  | { status: 'waiting'; retryAt: number; reason: string; refusal?: Refusal }
  | { status: 'closed'; error?: Refusal };

/** One message as the inspector of a page shows it. */
export interface WireFrame {
  direction: 'in' | 'out' | 'ack';
  name: string;
  payload: unknown;
  at: number;
}

export interface ConnectionOptions {
  /** Where the gateway is, for example `https://rt.example.com`. */
  url: string;
  /** A token, or what fetches one; the function is asked again when the token nears its end or was refused. */
  token: string | (() => Promise<string>);
  /** Longest pause between two tries, in ms. Default 10,000. */
  maxRetryMs?: number;
}

interface ConnectionEvents {
  state: ConnectionState;
  push: { [N in PushName]: { name: N; payload: Pushes[N] } }[PushName];
  wire: WireFrame;
}

const ANSWER_MS = 12_000;
const READY_MS = 15_000;
const MAX_TIMER_MS = 2 ** 31 - 1;

/**
 * One Socket.IO connection that comes back by itself. Every cause of loss (transport, server, refusal) takes one
 * way back, so that the time of the next try is known and jitter always applies.
 */
export class Connection {
  readonly events = new Emitter<ConnectionEvents>();
  readonly #options: ConnectionOptions;
  readonly #socket: Socket;
  #state: ConnectionState = { status: 'connecting' };
  #token: string | undefined;
  /** Moves with every try to connect: one that waited for its token meanwhile has nothing to do any more. */
  #opening = 0;
  #attempt = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #refresh: ReturnType<typeof setTimeout> | undefined;
  #farewell: Pushes['session.closing'] | undefined;

  constructor(options: ConnectionOptions) {
    this.#options = options;
    this.#socket = io(options.url, {
      transports: ['websocket'],
      reconnection: false,
      autoConnect: false,
      forceNew: true,
    });
    this.#socket.on('connect_error', (error) => this.#lost(error.message, Refusal.fromConnectError(error)));
    this.#socket.on('disconnect', (reason) => this.#lost(reason, undefined));
    this.#socket.onAny((name: string, payload: unknown) => this.#received(name as PushName, payload as never));
  }

  get state(): ConnectionState {
    return this.#state;
  }

  get connected(): boolean {
    return this.#state.status === 'connected';
  }

  open(): void {
    void this.#open();
  }

  /** Tries again now instead of at the end of the pause; for a page that learns the network is back. */
  retryNow(): void {
    if (this.#state.status === 'waiting') void this.#open();
  }

  /** Drops the connection and the token, and comes back with a fresh one. */
  restart(): void {
    this.#token = undefined;
    this.#attempt = 0;
    this.#stopTimers();
    this.#socket.disconnect();
    void this.#open();
  }

  close(): void {
    this.#end();
  }

  /**
   * Sends one command on the present connection. `accepted` is called with the reply before any push that follows it
   * is handed on; what awaits the promise may come after them.
   * @throws Refusal where the server said no; Unanswered where nobody knows what became of it.
   */
  request<N extends CommandName>(
    name: N,
    payload: CommandInput<N>,
    accepted?: (reply: CommandReply<N>) => void,
  ): Promise<CommandReply<N>> {
    if (!this.connected) return Promise.reject(new Unanswered('not connected'));
    this.#tap('out', name, payload);
    return new Promise((resolve, reject) => {
      this.#socket.timeout(ANSWER_MS).emit(name, payload, (error: Error | null, answer: Answer<CommandReply<N>>) => {
        if (error) return reject(new Unanswered(error.message));
        this.#tap('ack', name, answer);
        if (!answer.ok) return reject(new Refusal(answer.error));
        accepted?.(answer);
        resolve(answer);
      });
    });
  }

  async #open(): Promise<void> {
    this.#stopTimers();
    this.#become({ status: 'connecting' });
    this.#farewell = undefined;
    const number = ++this.#opening;
    const superseded = () => number !== this.#opening || this.#state.status !== 'connecting';
    try {
      const token = this.#token ?? (await this.#fetchToken());
      if (superseded()) return;
      this.#token = token;
    } catch (error) {
      if (superseded()) return;
      return this.#lost(`no token: ${messageOf(error)}`, error instanceof Refusal ? error : undefined);
    }
    this.#socket.auth = { token: this.#token };
    this.#timer = setTimeout(() => this.#giveUp(), READY_MS);
    this.#socket.connect();
  }

  /** A server that accepts the socket and then says nothing is as good as none. */
  #giveUp(): void {
    this.#socket.disconnect();
    if (this.#state.status === 'connecting') this.#lost('no answer', undefined);
  }

  async #fetchToken(): Promise<string> {
    return typeof this.#options.token === 'string' ? this.#options.token : await this.#options.token();
  }

  #received<N extends PushName>(name: N, payload: Pushes[N]): void {
    this.#tap('in', name, payload);
    if (name === 'session.ready') this.#ready(payload as Session, (payload as Session).serverTime - Date.now());
    if (name === 'session.closing') this.#farewell = payload as Pushes['session.closing'];
    this.events.emit('push', { name, payload } as ConnectionEvents['push']);
  }

  /** @param skewMs how far the gateway's clock is ahead of the one here */
  #ready(session: Session, skewMs: number): void {
    this.#attempt = 0;
    this.#stopTimers();
    if (typeof this.#options.token === 'function') {
      const left = session.expiresAt - session.serverTime;
      const inMs = left - Math.min(90_000, left / 3);
      this.#refresh = setTimeout(
        () => void this.#refreshToken(0, skewMs),
        Math.min(Math.max(inMs, 1000), MAX_TIMER_MS),
      );
    }
    this.#become({ status: 'connected', session });
  }

  async #refreshToken(tries: number, skewMs: number): Promise<void> {
    if (typeof this.#options.token === 'string' || this.#state.status !== 'connected') return;
    const session = this.#state.session;
    const stillHere = () => this.#state.status === 'connected' && this.#state.session === session;
    try {
      const token = await this.#fetchToken();
      if (!stillHere()) return;
      const { expiresAt } = await this.request('session.refresh', { token });
      this.#token = token;
      if (stillHere()) this.#ready({ ...session, expiresAt, serverTime: Date.now() + skewMs }, skewMs);
    } catch (error) {
      // Without luck the session ends by itself, and the way back fetches a token of its own.
      if (error instanceof Refusal && !error.retryable) this.#token = undefined;
      else if (stillHere()) {
        this.#refresh = setTimeout(() => void this.#refreshToken(tries + 1, skewMs), backoffMs(tries, 2000, 20_000));
      }
    }
  }

  #lost(reason: string, refusal: Refusal | undefined): void {
    if (this.#state.status === 'closed' || this.#state.status === 'waiting') return;
    this.#stopTimers();
    const farewell = this.#farewell;
    const code = refusal?.code ?? farewell?.code;
    const credential = code === 'unauthenticated' || code === 'token_expired';
    if (credential) this.#token = undefined;
    const renewable = credential && typeof this.#options.token === 'function';
    const final = refusal ? !refusal.retryable : farewell?.reconnect === false;
    if (final && !renewable) {
      const text = refusal?.message ?? farewell?.message ?? reason;
      this.#end(refusal ?? new Refusal({ code: code ?? 'internal', message: text, retryable: false }));
      return;
    }
    const backoff = backoffMs(this.#attempt++, 400, this.#options.maxRetryMs ?? 10_000);
    const pause = Math.max(backoff, refusal?.retryAfterMs ?? 0, farewell?.afterMs ?? 0);
    this.#timer = setTimeout(() => void this.#open(), pause);
    const text = farewell?.message ?? refusal?.message ?? reason;
    const state = { status: 'waiting' as const, retryAt: Date.now() + pause, reason: text };
    this.#become(refusal ? { ...state, refusal } : state);
  }

  #end(error?: Refusal): void {
    this.#stopTimers();
    this.#become(error ? { status: 'closed', error } : { status: 'closed' });
    this.#socket.disconnect();
  }

  #become(state: ConnectionState): void {
    this.#state = state;
    this.events.emit('state', state);
  }

  #tap(direction: WireFrame['direction'], name: string, payload: unknown): void {
    if (!this.events.has('wire')) return;
    // A token is nobody's business, not even an inspector's.
    const shown = name === 'session.refresh' && direction === 'out' ? { token: '…' } : payload;
    this.events.emit('wire', { direction, name, payload: shown, at: Date.now() });
  }

  #stopTimers(): void {
    clearTimeout(this.#timer);
    clearTimeout(this.#refresh);
  }
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
