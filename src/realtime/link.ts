import type uWS from 'uWebSockets.js';
import type { Frame } from '../protocol/frames.js';
import type { Pushes } from '../protocol/pushes.js';

/** What a session or a whole connection is told right before the server ends it. */
export type Closing = Pushes['session.closing'];

/** The Engine.IO connection on top of a link, as far as it is used here. */
export interface Connection {
  readonly readyState: string;
  close(): void;
}

/** The user data of a WebSocket: Engine.IO's own, and ours. */
export interface LinkData {
  transport: unknown;
  link?: Link;
}

/** What the commands of a session that is over its rate are answered with, unparsed: a flood must cost little to refuse. */
export interface StandingRefusal {
  /** By `performance.now()`, ms: a wall clock may be put back. */
  until: number;
  /** The arguments of the ack, as they stand on the wire. */
  answer: string;
  /** One more was refused. */
  count(): void;
}

const MESSAGE = 0x34;
const EVENT = 0x32;
const OPENING_BRACKET = 0x5b;
/** Digits of an id of an ack, at most. */
const ID_MAX = 16;

/** The id of the ack of a command at `/`, `''` for a command without; `undefined` for any other message. */
function ackIdOf(message: ArrayBuffer): string | undefined {
  const bytes = new Uint8Array(message, 0, Math.min(message.byteLength, ID_MAX + 3));
  if (bytes[0] !== MESSAGE || bytes[1] !== EVENT) return undefined;
  let id = '';
  for (let at = 2; at < bytes.length; at++) {
    const byte = bytes[at] ?? 0;
    if (byte === OPENING_BRACKET) return id;
    if (byte < 0x30 || byte > 0x39) return undefined;
    id += String.fromCharCode(byte);
  }
  return undefined;
}

/** Messages of one connection before it is closed as hostile, as a multiple of what a session may send. */
const FLOOD_WINDOW_MS = 1000;

/**
 * One WebSocket. uWebSockets.js throws on every call to a closed socket, so all access goes through here and
 * stops at {@link Link.closed}.
 */
export class Link {
  /** Set once the client presented itself; until then only Engine.IO knows the connection. */
  connection: Connection | undefined;
  /** Messages a second before the connection is closed as hostile, where they are more than a client's. */
  pace = 0;
  /** Bytes of the last message that arrived: Socket.IO hands on what is in it before the next is read. */
  received = 0;
  refusal: StandingRefusal | undefined;
  /** Namespaces that are being or have been entered; one socket each. */
  readonly namespaces = new Set<string>();
  /** Bytes waiting when last looked at, or `Infinity` once a frame was dropped. */
  waiting = 0;
  /** Bytes published on this gateway, to whomever, when last looked at. */
  publishedThen = 0;
  /** Cut by uWebSockets.js because too much waited. */
  slow = false;
  #ws: uWS.WebSocket<LinkData> | undefined;
  #drained: ((room: boolean) => void)[] | undefined;
  #windowStart = 0;
  #messages = 0;

  constructor(
    ws: uWS.WebSocket<LinkData>,
    readonly lowWaterBytes: number,
  ) {
    this.#ws = ws;
  }

  get open(): boolean {
    return this.#ws !== undefined;
  }

  /** Writes a ready Engine.IO message, in order with everything Socket.IO writes: both end in the same `ws.send`. */
  send(message: string): void {
    if (this.#ws?.send(message) === 2) this.waiting = Number.POSITIVE_INFINITY;
  }

  /** The same for many, in as few writes to the kernel as they fit in. */
  sendAll(messages: readonly string[]): void {
    this.#ws?.cork(() => {
      for (const message of messages) this.send(message);
    });
  }

  subscribe(topic: string): void {
    this.#ws?.subscribe(topic);
  }

  unsubscribe(topic: string): void {
    this.#ws?.unsubscribe(topic);
  }

  unsubscribeAll(): void {
    for (const topic of this.#ws?.getTopics() ?? []) this.#ws?.unsubscribe(topic);
  }

  /** To all other subscribers of a topic. @returns `false` where this link does not subscribe it: nothing was sent. */
  publish(topic: string, frame: Frame): boolean {
    if (!this.#ws?.isSubscribed(topic)) return false;
    this.#ws.publish(topic, frame);
    return true;
  }

  /** Whether more bytes wait than a page should be added to. */
  get full(): boolean {
    return this.#ws !== undefined && this.#ws.getBufferedAmount() > this.lowWaterBytes;
  }

  /** Resolves `true` once few enough bytes wait, `false` when the socket is gone. */
  drained(): Promise<boolean> {
    if (!this.#ws) return Promise.resolve(false);
    if (!this.full) return Promise.resolve(true);
    return new Promise((resolve) => {
      this.#drained ??= [];
      this.#drained.push(resolve);
    });
  }

  /** uWebSockets.js wrote some of what waited. */
  onDrain(): void {
    this.sample();
    if (this.#drained && this.waiting <= this.lowWaterBytes) this.#settle(true);
  }

  onClosed(): void {
    this.#ws = undefined;
    this.#settle(false);
  }

  /** Looks at the bytes that wait, so that a later close can be told to be a slow reader's. */
  sample(): void {
    if (this.#ws && this.waiting !== Number.POSITIVE_INFINITY) this.waiting = this.#ws.getBufferedAmount();
  }

  /** Counts an incoming message. @returns whether there were more than `max` within a second. */
  floods(max: number, now: number): boolean {
    if (now - this.#windowStart >= FLOOD_WINDOW_MS) {
      this.#windowStart = now;
      this.#messages = 0;
    }
    this.#messages += 1;
    return this.#messages > Math.max(max, this.pace);
  }

  /** Answers a command of a session that is over its rate. @returns `false` for what has to be looked at. */
  refuses(message: ArrayBuffer, now: number): boolean {
    const { refusal } = this;
    if (!refusal) return false;
    if (now >= refusal.until) {
      this.refusal = undefined;
      return false;
    }
    const id = ackIdOf(message);
    if (id === undefined) return false;
    if (id !== '') this.send(`43${id}${refusal.answer}`);
    refusal.count();
    return true;
  }

  /** Ends the socket at once, without Engine.IO's consent; its close handler runs before this returns. */
  terminate(): void {
    this.#ws?.close();
  }

  #settle(room: boolean): void {
    const waiters = this.#drained;
    this.#drained = undefined;
    for (const resolve of waiters ?? []) resolve(room);
  }
}

/**
 * Tells a namespace why, then ends the connection. With `reconnect` the WebSocket just closes, upon which
 * socket.io-client comes back by itself; without it a Socket.IO DISCONNECT goes first, upon which it stays away.
 */
export function endConnection(link: Link, connection: Connection, namespace: string, closing: Closing): void {
  const prefix = namespace === '/' ? '' : `${namespace},`;
  link.send(`42${prefix}["session.closing",${JSON.stringify(closing)}]`);
  if (!closing.reconnect) link.send(`41${prefix}`);
  // Later, because the caller may be in the middle of a walk over readers, and closing runs every listener at once.
  process.nextTick(() => connection.close());
}
