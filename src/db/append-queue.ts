import { Fifo } from '../core/fifo.js';
import type { Append, Appended } from '../core/log.js';
import type { TuttiError } from '../errors.js';

/** An event that waits for its commit. */
export interface Waiting {
  readonly event: Append;
  /** In UTF-16 units. */
  readonly length: number;
  /** By the monotonic clock. */
  readonly since: number;
  readonly timer: NodeJS.Timeout;
  state: 'queued' | 'sent' | 'done';
  resolve(appended: Appended): void;
  reject(error: TuttiError): void;
}

export interface QueueLimits {
  lanes: number;
  /** Events in one commit. */
  batchMax: number;
  /** How long a commit waits for company, in ms. */
  lingerMs: number;
}

/** UTF-16 length of the events of one commit. */
const BATCH_LENGTH = 2 * 1024 * 1024;
/** Events of a room that go into a batch before those of the tenant's next one: fewer rooms in a batch leave more to other lanes. */
const ROOM_RUN = 8;
/** How long events of a tenant wait for its commit in flight before they take another lane, in ms. */
const PATIENCE_MS = 20;
/** How long it is remembered how much company a tenant's events had, in ms. */
const REMEMBERED_MS = 100;

class Room {
  readonly events = new Fifo<Waiting>();
  /** Events that still wait; those that gave up stay in line until it is their turn. */
  queued = 0;
  /** Events in the batch that is in the making. */
  taken = 0;
  inFlight = false;

  constructor(readonly name: string) {}
}

class Tenant {
  /** Rooms with events or a commit in flight. */
  readonly rooms = new Map<string, Room>();
  /** Of those, the ones that may be committed; the first is served next. */
  readonly ready = new Set<Room>();
  /** Events in rooms that are ready. */
  queued = 0;
  /** Lanes that commit something of it. */
  lanes = 0;
  /** Events worth waiting for before a batch leaves: about as many as came lately, so that a lone publisher waits for nobody. */
  target = 1;
  /** Whether it has waited for company, or for its other commit, long enough. */
  waited = false;
  timer: NodeJS.Timeout | undefined;

  constructor(readonly id: string) {}
}

/** What a batch has of one tenant. */
interface Taken {
  readonly rooms: Set<Room>;
  events: number;
}

/** Events to commit at once. `done` lets the next ones of their rooms go. */
export interface Batch {
  readonly events: Waiting[];
  done(): void;
}

/**
 * What waits for a commit, and whose turn it is: one event of each tenant after another, of a tenant a few of each room, of a room the
 * oldest. A room has one batch in flight, so that its events keep the order of their appends. A tenant has one, too, as long as what
 * came meanwhile goes into the next: a tenant with many events then makes large commits, not many, and leaves lanes to others.
 */
export class AppendQueue {
  readonly #limits: QueueLimits;
  /** Lanes one tenant may have. */
  readonly #share: number;
  readonly #tenants = new Map<string, Tenant>();
  /** Tenants with something to commit now; the first is served next. */
  readonly #turns = new Set<Tenant>();
  readonly #onReady: () => void;
  #queued = 0;

  /** @param onReady called when a batch can be taken that could not before */
  constructor(limits: QueueLimits, onReady: () => void) {
    this.#limits = limits;
    this.#share = Math.max(1, limits.lanes - 1);
    this.#onReady = onReady;
  }

  /** Events that wait. */
  get queued(): number {
    return this.#queued;
  }

  /** Tenants that are known: they have events waiting or on their way, or had some just now. */
  get tenants(): number {
    return this.#tenants.size;
  }

  push(waiting: Waiting): void {
    const { tenant: id, room: name } = waiting.event;
    const tenant = this.#tenants.get(id) ?? new Tenant(id);
    this.#tenants.set(id, tenant);
    const room = tenant.rooms.get(name) ?? new Room(name);
    tenant.rooms.set(name, room);
    if (tenant.queued === 0) this.#calm(tenant);
    room.events.push(waiting);
    this.#count(tenant, room, 1);
    if (!room.inFlight) tenant.ready.add(room);
    this.#consider(tenant);
  }

  /** An event gives up waiting. */
  expire({ event }: Waiting): void {
    const tenant = this.#tenants.get(event.tenant);
    const room = tenant?.rooms.get(event.room);
    if (!tenant || !room) return;
    this.#count(tenant, room, -1);
    this.#rest(tenant, room);
    this.#consider(tenant);
  }

  take(): Batch | undefined {
    const events: Waiting[] = [];
    const taken = new Map<Tenant, Taken>();
    let length = 0;
    while (events.length < this.#limits.batchMax && (events.length === 0 || length < BATCH_LENGTH)) {
      const [tenant] = this.#turns;
      if (!tenant) break;
      const [room] = tenant.ready;
      const waiting = room?.events.shift();
      // To the end of the turn.
      this.#turns.delete(tenant);
      if (room && waiting?.state === 'queued') {
        waiting.state = 'sent';
        room.taken += 1;
        this.#count(tenant, room, -1);
        length += waiting.length;
        events.push(waiting);
        const own = taken.get(tenant) ?? { rooms: new Set(), events: 0 };
        own.rooms.add(room);
        own.events += 1;
        taken.set(tenant, own);
      }
      if (room && (room.events.size === 0 || room.taken % ROOM_RUN === 0)) {
        tenant.ready.delete(room);
        if (room.events.size > 0) tenant.ready.add(room);
      }
      if (tenant.queued > 0) this.#turns.add(tenant);
    }
    if (events.length === 0) return undefined;
    for (const [tenant, own] of taken) this.#begin(tenant, own);
    return {
      events,
      done: () => {
        for (const [tenant, { rooms }] of taken) this.#end(tenant, rooms);
      },
    };
  }

  #begin(tenant: Tenant, { rooms, events }: Taken): void {
    for (const room of rooms) {
      room.inFlight = true;
      room.taken = 0;
      tenant.queued -= tenant.ready.delete(room) ? room.queued : 0;
    }
    tenant.lanes += 1;
    tenant.target = Math.min(this.#limits.batchMax, Math.max(1, events, Math.floor(tenant.target * 0.9)));
    this.#calm(tenant);
    this.#consider(tenant);
  }

  #end(tenant: Tenant, rooms: ReadonlySet<Room>): void {
    tenant.lanes -= 1;
    for (const room of rooms) {
      room.inFlight = false;
      if (room.queued > 0) {
        tenant.ready.add(room);
        tenant.queued += room.queued;
      }
      this.#rest(tenant, room);
    }
    this.#calm(tenant);
    // What came meanwhile has waited, and had company.
    tenant.waited = tenant.queued > 0;
    this.#consider(tenant);
  }

  #count(tenant: Tenant, room: Room, by: 1 | -1): void {
    this.#queued += by;
    room.queued += by;
    if (!room.inFlight) tenant.queued += by;
  }

  /** Forgets a room that nobody waits for, and its tenant with the last. */
  #rest(tenant: Tenant, room: Room): void {
    if (room.queued > 0 || room.inFlight) return;
    tenant.ready.delete(room);
    tenant.rooms.delete(room.name);
  }

  /** Whether the tenant has its turn now; if not, when. */
  #consider(tenant: Tenant): void {
    if (tenant.queued === 0) {
      this.#turns.delete(tenant);
      this.#calm(tenant);
      if (tenant.rooms.size > 0) return;
      if (tenant.target > 1) tenant.timer = setTimeout(() => this.#tenants.delete(tenant.id), REMEMBERED_MS);
      else this.#tenants.delete(tenant.id);
      return;
    }
    const { batchMax, lingerMs } = this.#limits;
    const alone = tenant.lanes === 0;
    const enough = tenant.queued >= (alone ? tenant.target : batchMax) || (alone && lingerMs === 0);
    const may = tenant.lanes < this.#share;
    if (may && (enough || tenant.waited)) {
      this.#turns.add(tenant);
      this.#onReady();
    } else {
      this.#turns.delete(tenant);
      if (may) tenant.timer ??= setTimeout(() => this.#waited(tenant), alone ? lingerMs : PATIENCE_MS);
    }
  }

  #waited(tenant: Tenant): void {
    tenant.timer = undefined;
    tenant.waited = true;
    this.#consider(tenant);
  }

  #calm(tenant: Tenant): void {
    clearTimeout(tenant.timer);
    tenant.timer = undefined;
    tenant.waited = false;
  }
}
