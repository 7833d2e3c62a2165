import type { Announcement, Bus } from '../../src/core/bus.js';
import { type RoomKey, roomKey } from '../../src/core/keys.js';
import type { Append, Appended, EventLog, Range, RoomHead } from '../../src/core/log.js';
import type { Logger, Metrics } from '../../src/core/telemetry.js';
import type { Outlet, Viewer } from '../../src/core/viewer.js';
import { TuttiError } from '../../src/errors.js';
import type { EventRecord, Frame } from '../../src/protocol/frames.js';
import type { VirtualClock } from './virtual-clock.js';

interface SimRoom {
  epoch: string;
  floor: number;
  events: EventRecord[];
}

/** A log in memory whose answers take virtual time, and which can be away. Counts its reads. */
export class SimLog implements EventLog {
  readonly rooms = new Map<RoomKey, SimRoom>();
  reads = 0;
  away = false;
  /** Most events in one page, as if they were large. */
  pageMax = Number.POSITIVE_INFINITY;
  #epochs = 0;

  constructor(
    readonly clock: VirtualClock,
    readonly delay: () => number,
  ) {}

  async append({ tenant, room, mid, type, data, by }: Append): Promise<Appended> {
    await this.#answer();
    const log = this.#room(roomKey(tenant, room));
    const seq = log.floor + log.events.length + 1;
    const at = this.clock.now();
    log.events.push({ room, epoch: log.epoch, seq, mid, type, data, by, at });
    return { epoch: log.epoch, seq, at, duplicate: false };
  }

  async open(tenant: string, room: string): Promise<RoomHead> {
    return (await this.#read(() => head(this.#room(roomKey(tenant, room))))) as RoomHead;
  }

  heads(rooms: readonly RoomKey[]): Promise<Map<RoomKey, RoomHead>> {
    return this.#read(() => {
      const found = new Map<RoomKey, RoomHead>();
      for (const key of rooms) {
        const room = this.rooms.get(key);
        if (room) found.set(key, head(room));
      }
      return found;
    });
  }

  read(tenant: string, room: string, { after = 0, before = Infinity, limit, order }: Range) {
    return this.#read(() => {
      const log = this.rooms.get(roomKey(tenant, room));
      if (!log) return undefined;
      const found = log.events.filter(({ seq }) => seq > after && seq < before && seq > log.floor);
      if (order === 'desc') found.reverse();
      return { ...head(log), events: found.slice(0, Math.min(limit, this.pageMax)) };
    });
  }

  async summary(): Promise<undefined> {
    return undefined;
  }

  async list(): Promise<[]> {
    return [];
  }

  async erase(tenant: string, room: string): Promise<boolean> {
    return this.rooms.delete(roomKey(tenant, room));
  }

  async drain(): Promise<void> {}

  #room(key: RoomKey): SimRoom {
    const room = this.rooms.get(key) ?? { epoch: `e${this.#epochs++}`, floor: 0, events: [] };
    this.rooms.set(key, room);
    return room;
  }

  async #answer(): Promise<void> {
    await this.clock.sleep(this.delay());
    if (this.away) throw new TuttiError('log_unavailable', 'away');
  }

  /** The snapshot is taken half-way: an answer may be old when it arrives. */
  async #read<T>(snapshot: () => T): Promise<T> {
    this.reads += 1;
    await this.#answer();
    const result = snapshot();
    await this.#answer();
    return result;
  }
}

const head = ({ epoch, floor, events }: SimRoom): RoomHead => ({ epoch, floor, head: floor + events.length });

/** A bus that drops, repeats, delays and so reorders. */
export class SimBus implements Bus {
  #listener: ((room: RoomKey, message: Announcement) => void) | undefined;
  readonly #rooms = new Map<RoomKey, number>();

  constructor(
    readonly others: SimBus[],
    readonly clock: VirtualClock,
    readonly chance: { random: () => number; drop: number; repeat: number; maxDelayMs: number },
  ) {
    others.push(this);
  }

  announce(room: RoomKey, message: Announcement): void {
    const { random: next, drop, repeat, maxDelayMs } = this.chance;
    for (const other of this.others) {
      if (other === this) continue;
      const copies = next() < drop ? 0 : next() < repeat ? 2 : 1;
      for (let i = 0; i < copies; i += 1) this.clock.after(next() * maxDelayMs, () => other.#arrive(room, message));
    }
  }

  async subscribe(room: RoomKey): Promise<void> {
    this.#rooms.set(room, (this.#rooms.get(room) ?? 0) + 1);
  }

  unsubscribe(room: RoomKey): void {
    this.#rooms.set(room, (this.#rooms.get(room) ?? 0) - 1);
  }

  onMessage(listener: (room: RoomKey, message: Announcement) => void): void {
    this.#listener = listener;
  }

  onReconnect(): void {}
  connected = () => true;
  async close(): Promise<void> {}

  #arrive(room: RoomKey, message: Announcement): void {
    if ((this.#rooms.get(room) ?? 0) > 0) this.#listener?.(room, message);
  }
}

/** Followers of rooms, as a gateway's sockets would be. */
export class SimOutlet implements Outlet {
  readonly followers = new Map<RoomKey, Set<SimViewer>>();

  publish(room: RoomKey, frame: Frame, except?: Viewer): void {
    for (const viewer of this.followers.get(room) ?? []) if (viewer !== except) viewer.send([frame]);
  }
}

/** A reader that keeps what it gets; it can be slow. */
export class SimViewer implements Viewer {
  readonly frames: Frame[] = [];
  closed: string | undefined;

  constructor(
    readonly id: string,
    readonly outlet: SimOutlet,
    readonly drain: () => Promise<boolean> = async () => true,
  ) {}

  send(frames: readonly Frame[]): void {
    if (!this.closed) this.frames.push(...frames);
  }

  follow(room: RoomKey): void {
    const set = this.outlet.followers.get(room) ?? new Set();
    this.outlet.followers.set(room, set.add(this));
  }

  unfollow(room: RoomKey): void {
    this.outlet.followers.get(room)?.delete(this);
  }

  drained(): Promise<boolean> {
    return this.closed ? Promise.resolve(false) : this.drain();
  }

  close(code: string): void {
    this.closed = code;
  }
}

export const silent: Logger = { debug() {}, info() {}, warn() {}, error() {} };
export const noMetrics: Metrics = { add() {}, observe() {}, gauge() {} };
