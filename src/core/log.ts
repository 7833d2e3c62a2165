import type { EventRecord } from '../protocol/frames.js';
import type { JsonText } from '../protocol/primitives.js';
import type { RoomKey } from './keys.js';

/** An event to be stored. `mid` makes the append idempotent. */
export interface Append {
  tenant: string;
  room: string;
  mid: string;
  type: string;
  data: JsonText;
  /** JSON of an Actor. */
  by: JsonText;
}

/** Where an event stands. `duplicate`: it stood there before, stored by the same publisher under the same mid. */
export interface Appended {
  epoch: string;
  seq: number;
  /** Commit time by the database's clock, ms since the Unix epoch. */
  at: number;
  duplicate: boolean;
}

/** Events with `seq > floor` can be read; `head` is the last one's seq, 0 in an empty room. */
export interface RoomHead {
  epoch: string;
  head: number;
  floor: number;
}

export interface Range {
  /** Only events with a greater seq. */
  after?: number;
  /** Only events with a smaller seq. */
  before?: number;
  limit: number;
  order: 'asc' | 'desc';
}

export interface RoomSummary extends RoomHead {
  room: string;
  createdAt: number;
}

/** The durable log of all rooms. Every refusal is a TuttiError; an unreachable database is `log_unavailable`. */
export interface EventLog {
  /**
   * Stores an event; it is committed when this resolves (LOG1). Appends of one room keep the order of the calls
   * (LOG2). Makes the room if there is none.
   * @throws TuttiError `log_unavailable` (outcome unknown; retry with the same mid), `overloaded` (not stored),
   * `conflict` (the mid belongs to another publisher), `bad_request` (the database refuses the event itself).
   */
  append(event: Append): Promise<Appended>;
  /** The room's head, making the room if there is none. */
  open(tenant: string, room: string): Promise<RoomHead>;
  /** Heads of many rooms, possibly of several tenants, in one query. Rooms that do not exist are missing. */
  heads(rooms: readonly RoomKey[]): Promise<Map<RoomKey, RoomHead>>;
  /**
   * One page of events and the room's head, read in one snapshot. A page of large events ends before its limit, never
   * without an event that is there.
   * @returns `undefined` where there is no such room.
   */
  read(tenant: string, room: string, range: Range): Promise<(RoomHead & { events: EventRecord[] }) | undefined>;
  /** One room, or `undefined` where there is none. */
  summary(tenant: string, room: string): Promise<RoomSummary | undefined>;
  /** Rooms by name after `cursor`. */
  list(tenant: string, cursor: string | undefined, limit: number): Promise<RoomSummary[]>;
  /** Erases the room, its events and runs. A later room of that name has another epoch. @returns whether it was there. */
  erase(tenant: string, room: string): Promise<boolean>;
  /** Resolves when everything accepted so far is committed or refused; later appends are refused with `draining`. */
  drain(): Promise<void>;
}
