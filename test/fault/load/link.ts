import { io, type Socket } from 'socket.io-client';
import type { WireError } from '../../../src/errors.js';
import { pick } from '../../support/random.js';
import type { LoadConfig } from './config.js';

/** How an answer stands on the wire. */
export type Answer = ({ ok: true } & Record<string, unknown>) | { ok: false; error: WireError };

export interface LinkOptions {
  gateways: LoadConfig['gateways'];
  random: () => number;
  namespace?: '/' | '/worker';
  auth: Record<string, string>;
  /** Every packet as it arrived. */
  raw(text: unknown): void;
  /** Connected. Listeners are put on the new socket here; the old one has none any more. */
  up(socket: Socket, gateway: string): void;
  /** Lost; called once for each `up`. */
  down(why: string): void;
}

/** The `ws` socket below a Socket.IO client. */
interface Wire {
  pause(): void;
  resume(): void;
  terminate(): void;
}

const PAUSE_MIN_MS = 50;
const PAUSE_MAX_MS = 2500;
/** A gateway that accepts a connection and says nothing is as good as none. */
const GREETING_MS = 8000;

/**
 * A bare socket.io-client that comes back by itself, with jitter, at any of the gateways; and that fails as told. Each
 * connection is a client of its own, so nothing is carried over from one to the next.
 */
export class Link {
  #options: LinkOptions;
  #socket: Socket | undefined;
  #up = false;
  #closed = false;
  #attempt = 0;
  #afterMs = 0;
  #greeting: NodeJS.Timeout | undefined;
  #retry: NodeJS.Timeout | undefined;
  #last: string | undefined;
  readonly #hanging = new Set<Socket>();

  constructor(options: LinkOptions) {
    this.#options = options;
  }

  /** The connected socket. */
  get socket(): Socket | undefined {
    return this.#up && this.#socket?.connected ? this.#socket : undefined;
  }

  open(): void {
    if (this.#closed || this.#socket) return;
    const { gateways, random, namespace = '/', auth, raw } = this.#options;
    const others = gateways.filter(({ name }) => name !== this.#last);
    // Mostly somewhere else after a loss, now and then at the same gateway again.
    const gateway = pick(others.length > 0 && random() < 0.8 ? others : gateways, random);
    this.#last = gateway.name;
    const socket = io(`${gateway.url}${namespace}`, {
      transports: ['websocket'],
      auth,
      reconnection: false,
      forceNew: true,
      autoConnect: false,
      timeout: GREETING_MS,
    });
    this.#socket = socket;
    socket.on('connect', () => {
      clearTimeout(this.#greeting);
      this.#up = true;
      this.#attempt = 0;
      this.#options.up(socket, gateway.name);
    });
    socket.on('session.closing', (push: { code: string; afterMs?: number }) => {
      this.#afterMs = push.afterMs ?? 0;
    });
    socket.on('connect_error', (error: Error & { data?: WireError }) => {
      this.#afterMs = error.data?.retryAfterMs ?? 0;
      this.lose(error.data?.code ?? error.message);
    });
    socket.on('disconnect', (reason) => this.lose(reason));
    this.#greeting = setTimeout(() => this.lose('no greeting'), GREETING_MS);
    socket.connect();
    socket.io.engine.on('packet', ({ data }: { data?: unknown }) => raw(data));
  }

  /** Gives the connection up, properly closed, and comes back. */
  lose(why: string): void {
    this.#leave(why, (socket) => socket.disconnect());
  }

  /** The TCP connection is gone from one moment to the next. */
  cut(): void {
    this.#leave('cut', (socket) => wireOf(socket)?.terminate());
  }

  /** Goes silent without closing, and comes back as another connection while the old one hangs. */
  halfOpen(): void {
    this.#leave('half-open', (socket) => this.#hang(socket));
  }

  /** Reads nothing until the function it gives back is called. */
  pause(): () => void {
    const wire = this.#socket && wireOf(this.#socket);
    wire?.pause();
    return () => wire?.resume();
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#retry);
    this.#leave('closed', (socket) => socket.disconnect());
    for (const socket of this.#hanging) wireOf(socket)?.terminate();
    this.#hanging.clear();
  }

  #hang(socket: Socket): void {
    wireOf(socket)?.pause();
    this.#hanging.add(socket);
    socket.on('disconnect', () => this.#hanging.delete(socket));
  }

  #leave(why: string, end: (socket: Socket) => void): void {
    const socket = this.#socket;
    if (!socket) return;
    this.#socket = undefined;
    clearTimeout(this.#greeting);
    socket.removeAllListeners();
    const wasUp = this.#up;
    this.#up = false;
    end(socket);
    if (wasUp) this.#options.down(why);
    if (this.#closed) return;
    const backoff = Math.min(PAUSE_MAX_MS, PAUSE_MIN_MS * 2 ** Math.min(this.#attempt++, 8));
    const pause = Math.max(this.#afterMs, backoff * (0.5 + this.#options.random()));
    this.#afterMs = 0;
    this.#retry = setTimeout(() => this.open(), pause);
  }
}

function wireOf(socket: Socket): Wire | undefined {
  const engine = socket.io.engine as unknown as { transport?: { ws?: Wire } } | undefined;
  return engine?.transport?.ws;
}
