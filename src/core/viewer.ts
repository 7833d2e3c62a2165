import type { Frame } from '../protocol/frames.js';
import type { RoomKey } from './keys.js';

/** One reader of rooms on this gateway: a socket or an SSE stream. All calls are cheap and never throw. */
export interface Viewer {
  /** Unique on this gateway. */
  readonly id: string;
  /** Whether it takes events alone: nothing else is kept for it while its replay runs. */
  readonly eventsOnly: boolean;
  /** Whether too much waits for this reader already. */
  readonly full: boolean;
  /** Bytes that it may be sent at once where it is not {@link full}. */
  readonly room: number;
  /** Sends to this reader alone, in order with everything else it gets. A reader that is gone ignores it. */
  send(frames: readonly Frame[]): void;
  /** From this call on the reader gets what {@link Outlet.publish} sends, with no gap to what it was sent before. */
  follow(room: RoomKey): void;
  unfollow(room: RoomKey): void;
  /**
   * Resolves `true` when the reader's buffer has room for another page, `false` when the reader is gone. Others who
   * waited may have used the room meanwhile: {@link full} tells.
   */
  drained(): Promise<boolean>;
  /** Ends the reader's connection with a reason; it is expected to come back with its position. */
  close(code: 'slow_consumer' | 'overloaded', message: string): void;
}

/** Resolves as {@link Viewer.drained} does, with room for who asked. */
export async function readyFor(viewer: Viewer): Promise<boolean> {
  do {
    if (!(await viewer.drained())) return false;
  } while (viewer.full);
  return true;
}

const turns = new WeakMap<Viewer, Promise<unknown>>();

/**
 * Does it when everything is done that was asked for this reader before: of all the rooms that are replayed to it, one at
 * a time has a page on its way.
 */
export function inTurn<T>(viewer: Viewer, work: () => Promise<T>): Promise<T> {
  const turn = (turns.get(viewer) ?? Promise.resolve()).then(work, work);
  turns.set(viewer, turn);
  return turn;
}

/** Sends to every follower of a room on this gateway. */
export interface Outlet {
  publish(room: RoomKey, frame: Frame, except?: Viewer): void;
}
