import type { Frame } from '../protocol/frames.js';
import type { RoomKey } from './keys.js';

/** One reader of rooms on this gateway: a socket or an SSE stream. All calls are cheap and never throw. */
export interface Viewer {
  /** Unique on this gateway. */
  readonly id: string;
  /** Sends to this reader alone, in order with everything else it gets. A reader that is gone ignores it. */
  send(frames: readonly Frame[]): void;
  /** From this call on the reader gets what {@link Outlet.publish} sends, with no gap to what it was sent before. */
  follow(room: RoomKey): void;
  unfollow(room: RoomKey): void;
  /** Resolves `true` when the reader's buffer has room for another page, `false` when the reader is gone. */
  drained(): Promise<boolean>;
  /** Ends the reader's connection with a reason; it is expected to come back with its position. */
  close(code: 'slow_consumer' | 'overloaded', message: string): void;
}

/** Sends to every follower of a room on this gateway. */
export interface Outlet {
  publish(room: RoomKey, frame: Frame, except?: Viewer): void;
}
