import { type RoomKey, roomKey } from '../../src/core/keys.js';
import type { Append, Appended, EventLog, Range, RoomHead } from '../../src/core/log.js';
import { TuttiError } from '../../src/errors.js';
import type { EventRecord } from '../../src/protocol/frames.js';
import type { MortalClock } from './virtual-clock.js';

export interface SimRoom {
  epoch: string;
  floor: number;
  events: EventRecord[];
}

/** The rooms of all tenants as the database has them. Everything happens at once: a {@link Line} gives it time and faults. */
export class SimRooms {
  readonly rooms = new Map<RoomKey, SimRoom>();
  /** Every event that was ever committed, by epoch, seq and mid, also of rooms that are gone. */
  readonly ever = new Set<string>();
  /** Called for a room that is erased. */
  onErased: (room: RoomKey) => void = () => {};
  reads = 0;
  /** Most events in one page, as if they were large. */
  pageMax = Number.POSITIVE_INFINITY;
  #epochs = 0;

  constructor(readonly now: () => number) {}

  append({ tenant, room, mid, type, data, by }: Append): Appended {
    const log = this.room(roomKey(tenant, room));
    const known = log.events.find((event) => event.mid === mid);
    if (known && known.by !== by) throw new TuttiError('conflict', 'This mid is of another publisher.');
    if (known) return { epoch: log.epoch, seq: known.seq, at: known.at, duplicate: true };
    const seq = log.floor + log.events.length + 1;
    const at = this.now();
    log.events.push({ room, epoch: log.epoch, seq, mid, type, data, by, at });
    this.ever.add(`${log.epoch} ${seq} ${mid}`);
    return { epoch: log.epoch, seq, at, duplicate: false };
  }

  room(key: RoomKey): SimRoom {
    const room = this.rooms.get(key) ?? { epoch: this.#epoch(), floor: 0, events: [] };
    this.rooms.set(key, room);
    return room;
  }

  erase(key: RoomKey): boolean {
    const was = this.rooms.delete(key);
    if (was) this.onErased(key);
    return was;
  }

  /** As a restore of an older backup does: the newest events are gone and the epoch moves. */
  restore(key: RoomKey, head: number): void {
    const room = this.rooms.get(key);
    if (!room) return;
    const epoch = this.#epoch();
    const events = room.events.filter(({ seq }) => seq <= head).map((event) => ({ ...event, epoch }));
    for (const { seq, mid } of events) this.ever.add(`${epoch} ${seq} ${mid}`);
    this.rooms.set(key, { epoch, floor: Math.min(room.floor, head), events });
  }

  /** As retention does: the oldest events are gone. */
  trim(key: RoomKey, floor: number): void {
    const room = this.rooms.get(key);
    if (!room || floor <= room.floor) return;
    room.events = room.events.filter(({ seq }) => seq > floor);
    room.floor = floor;
  }

  #epoch(): string {
    return `e${this.#epochs++}`;
  }
}

export const headOf = ({ epoch, floor, events }: SimRoom): RoomHead => ({
  epoch,
  floor,
  head: floor + events.length,
});

export interface LineFaults {
  random: () => number;
  maxDelayMs: number;
  /** Share of calls that are refused without effect, and of those whose answer is lost after their effect. */
  lose: number;
}

/**
 * One gateway's way to the database. Calls take time and overtake each other; each may fail before or after its
 * effect. Once the gateway is dead nothing comes back, though what was under way may still take effect.
 */
export class Line {
  /** Whether the database is out of reach. */
  away = false;

  constructor(
    readonly clock: MortalClock,
    readonly faults: LineFaults,
  ) {}

  /** `work` is one transaction. */
  call<T>(work: () => T): Promise<T> {
    const { random, maxDelayMs, lose } = this.faults;
    return new Promise((resolve, reject) => {
      if (!this.clock.crosses()) return;
      const answer = (give: () => void) =>
        void this.clock.after(random() * maxDelayMs, () => this.clock.crosses() && give());
      const refuse = () => answer(() => reject(new TuttiError('log_unavailable', 'away')));
      this.clock.world.after(random() * maxDelayMs, () => {
        if (!this.clock.alive && random() < 0.5) return;
        if (this.away || random() < lose) return refuse();
        let result: T;
        try {
          result = work();
        } catch (problem) {
          return answer(() => reject(problem));
        }
        if (random() < lose) return refuse();
        answer(() => resolve(result));
      });
    });
  }
}

/** The log of one gateway. */
export function simLog(rooms: SimRooms, line: Line): EventLog {
  const read = <T>(work: () => T) => {
    rooms.reads += 1;
    return line.call(work);
  };
  return {
    append: (event) => line.call(() => rooms.append(event)),
    open: (tenant, room) => read(() => headOf(rooms.room(roomKey(tenant, room)))),
    heads: (keys) =>
      read(() => {
        const found = new Map<RoomKey, RoomHead>();
        for (const key of keys) {
          const room = rooms.rooms.get(key);
          if (room) found.set(key, headOf(room));
        }
        return found;
      }),
    read: (tenant, room, range) => read(() => page(rooms, roomKey(tenant, room), range)),
    summary: async () => undefined,
    list: async () => [],
    erase: (tenant, room) => line.call(() => rooms.erase(roomKey(tenant, room))),
    drain: async () => {},
  };
}

function page(rooms: SimRooms, key: RoomKey, { after = 0, before = Infinity, limit, order }: Range) {
  const room = rooms.rooms.get(key);
  if (!room) return undefined;
  const found = room.events.filter(({ seq }) => seq > after && seq < before);
  if (order === 'desc') found.reverse();
  return { ...headOf(room), events: found.slice(0, Math.min(limit, rooms.pageMax)) };
}
