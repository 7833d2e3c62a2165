import type { RoomKey } from '../core/keys.js';
import type { Viewer } from '../core/viewer.js';
import type { Frame } from '../protocol/frames.js';
import { endConnection, type Link } from './link.js';

/** The uWebSockets.js topic of a room. The prefix keeps it apart from any topic Socket.IO may use. */
export const topicOf = (room: RoomKey): string => `room/${room}`;

/**
 * A socket as a reader of rooms. Frames go to the WebSocket itself, past Socket.IO: acks are written by the same
 * `ws.send`, and uWebSockets.js writes what was published before it to a socket's topics first, so one order holds.
 */
export class SocketViewer implements Viewer {
  readonly eventsOnly = false;
  #link: Link | undefined;
  #closing = false;

  constructor(
    readonly id: string,
    link: Link,
  ) {
    this.#link = link;
  }

  get full(): boolean {
    return this.#link?.full ?? false;
  }

  get room(): number {
    return this.#link?.lowWaterBytes ?? 0;
  }

  send(frames: readonly Frame[]): void {
    this.#link?.sendAll(frames);
  }

  follow(room: RoomKey): void {
    this.#link?.subscribe(topicOf(room));
  }

  unfollow(room: RoomKey): void {
    this.#link?.unsubscribe(topicOf(room));
  }

  drained(): Promise<boolean> {
    return this.#link?.drained() ?? Promise.resolve(false);
  }

  close(code: 'slow_consumer' | 'overloaded', message: string): void {
    const link = this.#link;
    if (!link?.connection || this.#closing) return;
    this.#closing = true;
    endConnection(link, link.connection, '/', { code, message, reconnect: true });
  }

  /** Publishes to everybody else in the room. @returns `false` where this reader is none of the room: nothing was sent. */
  publish(room: RoomKey, frame: Frame): boolean {
    return this.#link?.publish(topicOf(room), frame) ?? false;
  }

  /** The session ended; the WebSocket may live on, without a topic of it. */
  gone(): void {
    this.#link?.unsubscribeAll();
    this.#link = undefined;
  }
}
