import type { Frame } from '../protocol/frames.js';
import type { RoomKey } from './keys.js';

/** What an announcement is about. One byte on the wire between gateways. */
export type AnnouncementKind =
  | 'event' // key `<epoch>:<seq>`, frame of the event
  | 'broadcast' // key empty, frame of the broadcast
  | 'chunk' // key `<run>:<attempt>:<n>:<count>`, frame of the chunk
  | 'run' // key `<run>`, frame of `run.state` or `run.reset`
  | 'hint'; // key says what changed, no frame: look it up where the truth is

/** `key` holds what a receiver needs without parsing the frame; it has no line break. */
export interface Announcement {
  kind: AnnouncementKind;
  key: string;
  frame: Frame | '';
}

/** Lossy, unordered and repeating on purpose: Postgres is the truth, the bus is a hint. */
export interface Bus {
  /** Sends to every other gateway that subscribed. Never throws and never waits: a lost hint heals by repair. */
  announce(room: RoomKey, message: Announcement): void;
  /**
   * Counted: every subscribe needs its unsubscribe. Resolves once announcements sent from now on are seen, or
   * after a bounded wait when the bus is away (it then subscribes by itself when it returns). Never rejects.
   */
  subscribe(room: RoomKey): Promise<void>;
  unsubscribe(room: RoomKey): void;
  /** What other gateways announced; never an echo of our own. Called at most once, before the first subscribe. */
  onMessage(listener: (room: RoomKey, message: Announcement) => void): void;
  /** Called when announcements may have been missed and flow again. */
  onReconnect(listener: () => void): void;
  /** Whether announcements flow at this moment. */
  connected(): boolean;
  close(): Promise<void>;
}
