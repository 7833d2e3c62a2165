import type uWS from 'uWebSockets.js';
import type { Held } from '../core/limits.js';
import type { Frame } from '../protocol/frames.js';
import type { Pushes } from '../protocol/pushes.js';

/** What a session or a whole connection is told right before the server ends it. */
export type Closing = Pushes['session.closing'];

/** The Engine.IO connection on top of a link, as far as it is used here. */
export interface Connection {
  readonly readyState: string;
  close(): void;
}

/** What Engine.IO reads of a handshake, kept for later: uWebSockets.js has none of it any more once its handler returned. */
export interface Handshake {
  url: string;
  query: string;
  origin: string;
  address: ArrayBuffer;
}

/** What the commands of a session that is over a rate are answered with, unread: a flood must cost little to refuse. */
export interface StandingRefusal {
  /** By `performance.now()`, ms: a wall clock may be put back. */
  until: number;
  /** The arguments of the ack, as they stand on the wire. */
  answer: string;
  /** One more was refused. */
  more(): void;
  /** So many were answered. */
  answered(count: number): void;
}

/** Stands before the session at `/`: its commands are let in, or refused, before they are read. */
export interface Gate {
  /** Hands the command to `take` in its turn, or refuses it. `message` is valid during the call only. */
  pass(id: string, message: ArrayBuffer, take: (message: ArrayBuffer) => void): void;
}

/** A command that was let in before it was read. */
export interface Admitted {
  /** It begins to run. */
  begin(): void;
  /** It is over, or will not be run. */
  end(): void;
}

/** What Engine.IO keeps with a WebSocket, and ours. */
export interface LinkData {
  transport: unknown;
  link?: Link;
}

/** The user data of a WebSocket in uWebSockets.js. */
export interface SocketData {
  /** Until Engine.IO was told of it. */
  handshake?: Handshake;
  link?: Link;
}

/** What `send` of uWebSockets.js returns for a message that it dropped. */
const DROPPED = 2;
/** Messages of one connection before it is closed as hostile, as a multiple of what a session may send. */
const FLOOD_WINDOW_MS = 1000;

/** What Engine.IO uses of a WebSocket of uWebSockets.js. */
export type EngineSocket = Pick<uWS.WebSocket<LinkData>, 'getUserData' | 'send' | 'end'>;

/**
 * One WebSocket. uWebSockets.js throws on every call to a closed socket, so all access goes through here, Engine.IO's too, and
 * does nothing once the socket is gone.
 */
export class Link implements EngineSocket {
  /** Set once the client presented itself; until then only Engine.IO knows the connection. */
  connection: Connection | undefined;
  /** Messages a second before the connection is closed as hostile, where they are more than a client's. */
  pace = 0;
  /** Bytes of the last message that arrived: Socket.IO hands on what is in it before the next is read. */
  received = 0;
  gate: Gate | undefined;
  /** The command that was let in last, until its handler has it. */
  admitted: Admitted | undefined;
  /** Stands while the session at `/` is over a rate. */
  refusal: StandingRefusal | undefined;
  /** Ids of the acks of commands that were refused unread and not answered yet. */
  readonly refused: string[] = [];
  /** Namespaces that are being or have been entered; one socket each. */
  readonly namespaces = new Set<string>();
  /** Messages that wait for their turn, and their bytes. */
  readonly held: Held = { count: 0, bytes: 0 };
  /** Bytes waiting when last looked at, or `Infinity` once a frame was dropped. */
  waiting = 0;
  /** Bytes published on this gateway, to whomever, when last looked at; `undefined` before that. */
  publishedThen: number | undefined;
  /** Cut by uWebSockets.js because too much waited. */
  slow = false;
  #data: LinkData | undefined;
  #ws: uWS.WebSocket<SocketData> | undefined;
  #drained: ((room: boolean) => void)[] | undefined;
  #windowStart = 0;
  #messages = 0;

  constructor(
    ws: uWS.WebSocket<SocketData>,
    readonly lowWaterBytes: number,
  ) {
    this.#ws = ws;
    ws.getUserData().link = this;
  }

  get open(): boolean {
    return this.#ws !== undefined;
  }

  /** Whether Engine.IO knows it. */
  get inEngine(): boolean {
    return this.#data !== undefined;
  }

  /** Engine.IO opened its side. */
  entered(data: LinkData): void {
    data.link = this;
    this.#data = data;
  }

  /** @throws Error before Engine.IO knows the link */
  getUserData(): LinkData {
    if (!this.#data) throw new Error('a link without a transport');
    return this.#data;
  }

  /** Writes a ready Engine.IO message, in order with everything Socket.IO writes: both end here. @returns as uWebSockets.js does. */
  send(message: uWS.RecognizedString, isBinary = false, compress = false): number {
    if (!this.#ws) return DROPPED;
    const sent = this.#ws.send(message, isBinary, compress);
    if (sent === DROPPED) this.waiting = Number.POSITIVE_INFINITY;
    return sent;
  }

  /** Says goodbye and ends the socket. */
  end(code?: number, reason?: uWS.RecognizedString): void {
    this.#ws?.end(code, reason);
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
    this.admit(undefined);
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

  /** The next command that is read was let in. One before it that nobody took is over. */
  admit(command: Admitted | undefined): void {
    this.admitted?.end();
    this.admitted = command;
  }

  /** Answers what was refused unread, in one write. */
  answerRefused(): void {
    const ids = this.refused.splice(0);
    const { refusal } = this;
    if (!refusal || ids.length === 0) return;
    this.sendAll(ids.filter((id) => id !== '').map((id) => `43${id}${refusal.answer}`));
    refusal.answered(ids.length);
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
  link.answerRefused();
  link.send(`42${prefix}["session.closing",${JSON.stringify(closing)}]`);
  if (!closing.reconnect) link.send(`41${prefix}`);
  // Later, because the caller may be in the middle of a walk over readers, and closing runs every listener at once.
  process.nextTick(() => connection.close());
}
