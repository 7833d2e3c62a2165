import type { EntryOf } from './entries.js';
import type { Findings } from './verdict.js';

const NONE = -1;
/** A number past this is a fault of the gateway or of the history, not a place. */
const SEQ_MAX = 100_000_000;
/** Acks of neighbours in a log come at most so many places out of order. */
const ACKS_APART = 1000;

export interface Room {
  readonly tenant: string;
  readonly name: string;
  readonly logs: Map<string, Log>;
}

/** One epoch of a room. */
export interface Log {
  readonly room: Room;
  readonly epoch: string;
  /** Whether the final table holds it; then `events` is the table. Else it is what acks and readers saw. */
  stored: boolean;
  floor: number;
  head: number;
  /** The event at each seq, `-1` for none. */
  readonly events: number[];
  /** The greatest seq acknowledged up to each mark, see {@link Published.targets}. */
  targets: Float64Array | undefined;
}

/** What a mid is: events made by the server (`run:<id>:…`) come without a send. */
export const isServerMid = (mid: string): boolean => /^run:[^:]+:[a-z]+$/.test(mid);
export const roomText = (room: Room): string => `${room.tenant}/${room.name}`;

/**
 * All events of a history, by columns: an event is its index in them, in whatever order the history first names them. One million
 * events take about 600 MB.
 */
export class Published {
  readonly mids: string[] = [];
  /** Room of the send; undefined for what nobody sent. */
  readonly rooms: (Room | undefined)[] = [];
  readonly publishers: string[] = [];
  readonly connections: string[] = [];
  /** First send, first ack: µs. */
  readonly sentAt: number[] = [];
  readonly ackedAt: number[] = [];
  /** Its place among all first sends, those of one connection in their order. */
  readonly ordinals: number[] = [];
  readonly attempts: number[] = [];
  /** Attempts that were refused; an event with a code in {@link Published.excused} counts for no availability. */
  readonly refused: number[] = [];
  readonly excused = new Set<number>();
  readonly ackLogs: (Log | undefined)[] = [];
  readonly ackSeqs: number[] = [];
  /** The connection its first ack came on: the one of the last send before. */
  readonly ackedOn: (string | undefined)[] = [];
  readonly logs: (Log | undefined)[] = [];
  readonly seqs: number[] = [];
  duplicates = 0;
  nacked = 0;
  unknown = 0;
  readonly #index = new Map<string, number>();
  readonly #rooms = new Map<string, Room>();
  readonly #names = new Map<string, string>();
  readonly #gateways = new Map<string, string>();
  readonly #findings: Findings;
  #tables = false;
  #sends = 0;

  constructor(findings: Findings) {
    this.#findings = findings;
  }

  /** Whether the history has final tables at all. */
  get hasTables(): boolean {
    return this.#tables;
  }

  allRooms(): Iterable<Room> {
    return this.#rooms.values();
  }

  *allLogs(): Generator<Log> {
    for (const room of this.#rooms.values()) yield* room.logs.values();
  }

  room(tenant: string, name: string): Room {
    const key = `${tenant}\0${name}`;
    let room = this.#rooms.get(key);
    if (!room) {
      room = { tenant, name, logs: new Map() };
      this.#rooms.set(key, room);
    }
    return room;
  }

  log(room: Room, epoch: string): Log {
    let log = room.logs.get(epoch);
    if (!log) {
      log = { room, epoch, stored: false, floor: 0, head: 0, events: [], targets: undefined };
      room.logs.set(epoch, log);
    }
    return log;
  }

  find(mid: string): number | undefined {
    return this.#index.get(mid);
  }

  /** The event of a mid; one that nobody sent so far if there is none. */
  intern(mid: string): number {
    const known = this.#index.get(mid);
    if (known !== undefined) return known;
    const event = this.mids.push(mid) - 1;
    this.#index.set(mid, event);
    this.rooms.push(undefined);
    this.publishers.push('');
    this.connections.push('');
    this.sentAt.push(Number.POSITIVE_INFINITY);
    this.ackedAt.push(Number.POSITIVE_INFINITY);
    this.ordinals.push(NONE);
    this.attempts.push(0);
    this.refused.push(0);
    this.ackLogs.push(undefined);
    this.ackSeqs.push(NONE);
    this.ackedOn.push(undefined);
    this.logs.push(undefined);
    this.seqs.push(NONE);
    return event;
  }

  send([, t, publisher, tenant, name, mid, conn]: EntryOf<'send'>): void {
    const event = this.intern(mid);
    const room = this.room(tenant, name);
    const first = this.attempts[event] === 0;
    if (first) {
      this.rooms[event] = room;
      this.publishers[event] = this.#name(publisher);
      this.connections[event] = this.#name(conn);
      this.ordinals[event] = this.#sends++;
    } else if (this.rooms[event] !== room || this.publishers[event] !== publisher) {
      throw new Error(`A history names one event by a mid, but ${mid} was sent twice: to ${roomText(room)}, too`);
    }
    // Until there is an ack: the connection it is waited for on.
    if (!this.ackLogs[event]) this.ackedOn[event] = this.#name(conn);
    this.attempts[event] = (this.attempts[event] ?? 0) + 1;
    this.sentAt[event] = Math.min(this.sentAt[event] ?? t, t);
  }

  conn([, , conn, gateway]: EntryOf<'conn'>): void {
    this.#gateways.set(conn, gateway);
  }

  /** The gateway a connection leads to, where the history tells. */
  gatewayOf(conn: string | undefined): string | undefined {
    return conn === undefined ? undefined : this.#gateways.get(conn);
  }

  ack([, t, publisher, mid, epoch, seq, duplicate]: EntryOf<'ack'>): void {
    const event = this.#index.get(mid);
    const room = event === undefined ? undefined : this.rooms[event];
    if (event === undefined || !room || this.publishers[event] !== publisher) {
      this.#findings.add('answer', `${publisher} got an ack for ${mid}, which it never sent`, t);
      return;
    }
    if (duplicate) this.duplicates += 1;
    const log = this.log(room, epoch);
    const before = this.ackLogs[event];
    this.ackedAt[event] = Math.min(this.ackedAt[event] ?? t, t);
    if (!before) {
      this.ackLogs[event] = log;
      this.ackSeqs[event] = seq;
    } else if (before !== log || this.ackSeqs[event] !== seq) {
      const first = `${before.epoch}:${this.ackSeqs[event]}`;
      this.#findings.add('answer', `${mid} was acknowledged at ${first} and then at ${epoch}:${seq}`, t);
    }
  }

  nack([, , , mid, code]: EntryOf<'nack'>, blameless: ReadonlySet<string>): void {
    const event = this.intern(mid);
    this.nacked += 1;
    this.refused[event] = (this.refused[event] ?? 0) + 1;
    if (blameless.has(code)) this.excused.add(event);
  }

  /** A page of the final table. */
  stored([, tenant, name, epoch, floor, head, seq, mids]: EntryOf<'stored'>): void {
    this.#tables = true;
    const log = this.log(this.room(tenant, name), epoch);
    log.stored = true;
    log.floor = floor;
    log.head = Math.max(log.head, head);
    for (const [i, mid] of mids.entries()) {
      const event = this.intern(mid);
      this.claim(log, seq + i, event, 'the final table');
    }
  }

  /** Somebody saw the event at this place: it has no other, and the place has no other event. */
  claim(log: Log, seq: number, event: number, who: string, t?: number): void {
    const { events } = log;
    if (!Number.isInteger(seq) || seq < 1 || seq > SEQ_MAX) {
      this.#findings.add('place', `${who}: ${this.mids[event]} at ${seq}, which is no place`, t);
      return;
    }
    while (events.length <= seq) events.push(NONE);
    const there = events[seq] ?? NONE;
    if (there === event) return;
    const where = `${roomText(log.room)} ${log.epoch}:${seq}`;
    if (there !== NONE) {
      this.#findings.add('place', `${who}: ${this.mids[event]} at ${where}, where ${this.mids[there]} stands`, t);
      return;
    }
    if (this.logs[event] === log) {
      this.#findings.add('twice', `${who}: ${this.mids[event]} at ${where} stands at ${this.seqs[event]}, too`, t);
    }
    events[seq] = event;
    this.logs[event] = log;
    this.seqs[event] = seq;
  }

  /** Whether it may be in a table: an attempt was sent that was not refused. */
  mayBeThere(event: number): boolean {
    if (isServerMid(this.mids[event] ?? '')) return true;
    return (this.attempts[event] ?? 0) > (this.refused[event] ?? 0) || this.ackLogs[event] !== undefined;
  }

  /** One string for all that are equal. */
  #name(name: string): string {
    const known = this.#names.get(name);
    if (known !== undefined) return known;
    this.#names.set(name, name);
    return name;
  }

  /** The greatest seq of a log that was acknowledged by `t`, at least `from`. */
  ackedUpTo(log: Log, from: number, t: number): number {
    let upTo = from;
    for (let seq = from + 1; seq <= upTo + ACKS_APART; seq++) {
      const event = log.events[seq];
      if (event === undefined) break;
      if ((this.ackedAt[event] ?? Number.POSITIVE_INFINITY) <= t) upTo = seq;
    }
    return upTo;
  }

  /** For each log and each of `marks` (ascending, µs) the greatest seq that was acknowledged by then. */
  targets(marks: readonly number[]): void {
    if (marks.length === 0) return;
    for (let event = 0; event < this.mids.length; event++) {
      const log = this.ackLogs[event];
      if (!log) continue;
      log.targets ??= new Float64Array(marks.length);
      const mark = firstAtLeast(marks, this.ackedAt[event] ?? 0);
      if (mark < marks.length) log.targets[mark] = Math.max(log.targets[mark] ?? 0, this.ackSeqs[event] ?? 0);
    }
    for (const { targets } of this.allLogs()) {
      if (!targets) continue;
      for (let i = 1; i < targets.length; i++) targets[i] = Math.max(targets[i] ?? 0, targets[i - 1] ?? 0);
    }
  }
}

/** Index of the first of ascending `values` that is at least `value`; their length if there is none. */
export function firstAtLeast(values: ArrayLike<number>, value: number): number {
  let from = 0;
  let to = values.length;
  while (from < to) {
    const middle = (from + to) >>> 1;
    if ((values[middle] ?? 0) < value) from = middle + 1;
    else to = middle;
  }
  return from;
}
