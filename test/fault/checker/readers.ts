import { type Asked, isOfStorm } from '../history.js';
import type { EntryOf } from './entries.js';
import type { Fault, Faults } from './faults.js';
import type { MayMove } from './log-rules.js';
import { firstAtLeast, isServerMid, type Log, type Published, type Room, roomText } from './published.js';
import type { Recoveries } from './recoveries.js';
import type { Findings } from './verdict.js';

interface Reader {
  readonly name: string;
  readonly room: Room;
  readonly ofStorm: boolean;
  log: Log;
  /** Where it stands: it was given this, or put here. */
  seq: number;
  gateway: string;
  /** It left by its own will. */
  left: boolean;
  /** Numbers that were passed over, until they come after all. */
  missing: Set<number>;
  /** Of the marks: the next one in time, and those whose events it lacks, with the gateway it was on then. */
  nextMark: number;
  pending: { mark: number; gateway: string }[];
  /** Marks at which its gateway went away; `target` is what was acknowledged when it had joined again. */
  uprooted: { mark: number; gateway: string; target: number | undefined }[];
}

interface ReaderOptions {
  caughtUpUs: number;
  mayMove: MayMove;
}

/** Faults that take connections: of who was at the gateway, in the storm, or hit itself. They have caught up once they joined again and have everything. */
const UPROOTS = /^(gateway-(kill|term|drain)|client-(cut|half-open|slow|storm))/;
/** So many missing numbers of one reader are told apart; past this a late one counts as a repeat. */
const MISSING_MAX = 10_000;

/** Holds what each reader was given against the final tables. A reader's entries are in one file, in their order. */
export class Readers {
  delivered = 0;
  joins = 0;
  resumes = 0;
  resyncs = 0;
  missed = 0;
  readonly slowest = { allMs: 0, quietMs: 0 };
  readonly #published: Published;
  readonly #faults: Faults;
  readonly #recoveries: Recoveries;
  readonly #findings: Findings;
  readonly #options: ReaderOptions;
  readonly #readers = new Map<string, Reader>();
  /** Those that have not been let in for the first time, and since when they want to be. */
  readonly #outside = new Map<string, number>();

  constructor(
    published: Published,
    faults: Faults,
    recoveries: Recoveries,
    findings: Findings,
    options: ReaderOptions,
  ) {
    this.#published = published;
    this.#faults = faults;
    this.#recoveries = recoveries;
    this.#findings = findings;
    this.#options = options;
  }

  get count(): number {
    return this.#readers.size;
  }

  /** The tenant a reader reads for; undefined before its first join. */
  tenantOf(reader: string): string | undefined {
    return this.#readers.get(reader)?.room.tenant;
  }

  hasLeft(reader: string): boolean {
    return this.#readers.get(reader)?.left ?? false;
  }

  opened([, t, name]: EntryOf<'open'>): void {
    this.#outside.set(name, t);
  }

  join([, t, name, tenant, roomName, gateway, asked, epoch, seq]: EntryOf<'join'>): void {
    this.joins += 1;
    this.#wasOutside(name, t, 'got in only after');
    const room = this.#published.room(tenant, roomName);
    const log = this.#published.log(room, epoch);
    const reader = this.#readers.get(name);
    if (!reader) {
      this.#put(name, room, log, seq, gateway, t);
    } else {
      if (reader.room !== room)
        throw new Error(`A reader of a history reads one room; ${name} joined ${roomText(room)}, too`);
      this.#pass(reader, t);
      reader.gateway = gateway;
      reader.left = false;
      if (isPosition(asked)) this.#resumed(reader, log, seq, t);
      else this.#restart(reader, log, seq);
      for (const one of reader.uprooted) one.target ??= this.#published.ackedUpTo(reader.log, reader.seq, t);
      this.#settle(reader, t);
    }
    const put = `${epoch}:${seq}`;
    if (isPosition(asked) ? put !== asked && !this.#options.mayMove(tenant, roomName) : isNoStart(asked, log, seq)) {
      this.#findings.add('resume', `${name} asked for ${asked} and was put at ${put}`, t);
    }
  }

  resync([, t, name, reason, epoch, seq]: EntryOf<'resync'>): void {
    this.resyncs += 1;
    const reader = this.#reader(name);
    this.#pass(reader, t);
    if (!this.#options.mayMove(reader.room.tenant, reader.room.name)) {
      this.#findings.add(
        'resync',
        `${name} at ${reader.log.epoch}:${reader.seq} was sent to ${epoch}:${seq}: ${reason}`,
        t,
      );
    }
    this.#restart(reader, this.#published.log(reader.room, epoch), seq);
    this.#settle(reader, t);
  }

  gone([, t, name, why]: EntryOf<'gone'>): void {
    const reader = this.#readers.get(name);
    if (why === 'left') this.#wasOutside(name, t, 'left, not let in for');
    if (!reader || why !== 'left') return;
    this.#pass(reader, t);
    reader.left = true;
    reader.pending = [];
    reader.uprooted = [];
  }

  received([, t, name, epoch, seq, mids]: EntryOf<'recv'>): void {
    const reader = this.#reader(name);
    this.#pass(reader, t);
    if (reader.nextMark > 0) this.#recoveries.delivered(reader.nextMark - 1, t);
    const log = epoch === reader.log.epoch ? reader.log : this.#published.log(reader.room, epoch);
    this.delivered += mids.length;
    let at = seq;
    for (const mid of mids) this.#event(reader, log, at++, mid, t);
    if (reader.pending.length > 0 || reader.uprooted.length > 0) this.#settle(reader, t);
  }

  /** Everything was read; `end` is the last time in the history. */
  finish(end: number): void {
    for (const name of [...this.#outside.keys()]) this.#wasOutside(name, end, 'was never let in, for');
    for (const reader of this.#readers.values()) {
      this.#flush(reader);
      if (reader.left) continue;
      this.#pass(reader, end);
      for (const { mark } of [...reader.pending, ...reader.uprooted]) this.#tooLate(reader, mark, end, 'never');
      const current = [...reader.room.logs.values()].find(({ stored }) => stored);
      if (current && (current !== reader.log || reader.seq < current.head)) {
        const where = `${reader.log.epoch}:${reader.seq}`;
        this.#findings.add(
          'behind',
          `${reader.name} ended at ${where}, ${roomText(reader.room)} at ${current.epoch}:${current.head}`,
          end,
        );
      }
    }
  }

  /** The first join of a reader, or the end of its waiting for one. */
  #wasOutside(name: string, t: number, what: string): void {
    const since = this.#outside.get(name);
    if (since === undefined) return;
    this.#outside.delete(name);
    const quiet = this.#faults.quiet(since, t);
    if (quiet <= this.#options.caughtUpUs) return;
    this.#findings.add('caught-up', `${name} ${what} ${(quiet / 1e6).toFixed(1)} s without a fault`, t);
  }

  #reader(name: string): Reader {
    const reader = this.#readers.get(name);
    if (!reader) throw new Error(`A history has a join before anything else of a reader: ${name}`);
    return reader;
  }

  #put(name: string, room: Room, log: Log, seq: number, gateway: string, t: number): void {
    const { times } = this.#recoveries;
    const nextMark = firstAtLeast(times, t + 1);
    const fresh = { left: false, missing: new Set<number>(), nextMark, pending: [], uprooted: [] };
    this.#readers.set(name, { name, room, ofStorm: isOfStorm(name), log, seq, gateway, ...fresh });
  }

  #resumed(reader: Reader, log: Log, seq: number, t: number): void {
    this.resumes += 1;
    if (log === reader.log && seq === reader.seq) return;
    if (!this.#options.mayMove(reader.room.tenant, reader.room.name)) {
      const from = `${reader.log.epoch}:${reader.seq}`;
      this.#findings.add('resume', `${reader.name} resumed from ${from} and was put at ${log.epoch}:${seq}`, t);
    }
    this.#restart(reader, log, seq);
  }

  #restart(reader: Reader, log: Log, seq: number): void {
    this.#flush(reader);
    if (reader.log !== log) reader.pending = [];
    if (reader.log !== log) for (const one of reader.uprooted) one.target = undefined;
    reader.log = log;
    reader.seq = seq;
  }

  #event(reader: Reader, log: Log, seq: number, mid: string, t: number): void {
    if (!this.#identify(reader, log, seq, mid, t)) return;
    if (log !== reader.log) {
      this.#findings.add('gap', `${reader.name} at ${reader.log.epoch}:${reader.seq} was given ${log.epoch}:${seq}`, t);
      this.#restart(reader, log, seq);
    } else if (seq === reader.seq + 1) {
      reader.seq = seq;
    } else if (seq > reader.seq) {
      for (let missing = reader.seq + 1; missing < seq && reader.missing.size < MISSING_MAX; missing++) {
        reader.missing.add(missing);
      }
      reader.seq = seq;
    } else if (reader.missing.delete(seq)) {
      this.#findings.add('reorder', `${reader.name} was given ${seq} after ${reader.seq}`, t);
    } else {
      this.#findings.add('repeat', `${reader.name} was given ${seq} again at ${reader.seq}`, t);
    }
  }

  /** Whether the event is one of the reader's own room. */
  #identify(reader: Reader, log: Log, seq: number, mid: string, t: number): boolean {
    const published = this.#published;
    const there = log.events[seq] ?? -1;
    if (there >= 0 && published.mids[there] === mid) return true;
    const event = published.intern(mid);
    const sentTo = published.rooms[event];
    if (sentTo && sentTo.tenant !== reader.room.tenant) {
      this.#findings.add(
        'isolation',
        `${reader.name} of ${reader.room.tenant} was given ${mid} of ${roomText(sentTo)}`,
        t,
      );
      return false;
    }
    const where = `${roomText(log.room)} ${log.epoch}:${seq}`;
    if (!sentTo && !isServerMid(mid)) {
      this.#findings.add('ghost', `${reader.name} was given ${mid} at ${where}, which nobody sent`, t);
    } else if (!log.stored) {
      published.claim(log, seq, event, reader.name, t);
    } else if (seq > log.floor && published.logs[event] !== log) {
      this.#findings.add('vanished', `${reader.name} was given ${mid} at ${where}, which is not in the final table`, t);
    } else if (seq > log.floor) {
      const place = published.seqs[event];
      this.#findings.add('place', `${reader.name} was given ${mid} at ${where}, which is stored at ${place}`, t);
    }
    return true;
  }

  /** Numbers that never came. */
  #flush(reader: Reader): void {
    if (reader.missing.size === 0) return;
    const [first] = reader.missing;
    const { size } = reader.missing;
    this.missed += size;
    this.#findings.add(
      'gap',
      `${reader.name} in ${roomText(reader.room)} was never given ${size} events, the first ${first}`,
    );
    reader.missing = new Set();
  }

  /** Time goes on to `t` with the reader where it is. */
  #pass(reader: Reader, t: number): void {
    const { times } = this.#recoveries;
    while (reader.nextMark < times.length && (times[reader.nextMark] ?? 0) <= t) {
      if (!reader.left) {
        const pending = { mark: reader.nextMark, gateway: reader.gateway };
        const fault = this.#recoveries.marks[reader.nextMark]?.fault;
        if (fault && UPROOTS.test(fault.kind) && isConcerned(reader, fault, reader.gateway)) {
          reader.uprooted.push({ ...pending, target: undefined });
        } else if (reader.seq >= this.#target(reader, reader.nextMark)) this.#caughtUp(reader, pending, 0);
        else reader.pending.push(pending);
      }
      reader.nextMark += 1;
    }
  }

  /** The reader moved at `t`. */
  #settle(reader: Reader, t: number): void {
    let done = 0;
    for (const pending of reader.pending) {
      if (reader.seq < this.#target(reader, pending.mark)) break; // targets ascend
      this.#caughtUp(reader, pending, t - (this.#recoveries.times[pending.mark] ?? t));
      done += 1;
    }
    if (done > 0) reader.pending.splice(0, done);
    if (reader.uprooted.length === 0) return;
    const { uprooted } = reader;
    reader.uprooted = uprooted.filter(({ target }) => target === undefined || reader.seq < target);
    for (const one of uprooted) {
      const fault = this.#recoveries.marks[one.mark]?.fault;
      if (!fault || reader.uprooted.includes(one)) continue;
      this.#caughtUp(reader, { mark: one.mark, gateway: one.gateway }, t - (this.#recoveries.times[one.mark] ?? t));
    }
  }

  #target(reader: Reader, mark: number): number {
    return reader.log.targets?.[mark] ?? 0;
  }

  #caughtUp(reader: Reader, { mark, gateway }: { mark: number; gateway: string }, us: number): void {
    const fault = this.#recoveries.marks[mark]?.fault;
    if (!fault) {
      const healed = this.#recoveries.times[mark] ?? 0;
      if (us > 0) {
        const { slowest } = this;
        slowest.allMs = Math.max(slowest.allMs, us / 1000);
        slowest.quietMs = Math.max(slowest.quietMs, this.#faults.quiet(healed, healed + us) / 1000);
      }
      if (us > this.#options.caughtUpUs) this.#tooLate(reader, mark, healed + us, 'only');
    } else if (isConcerned(reader, fault, gateway)) {
      this.#recoveries.caughtUp(fault, us);
    }
  }

  #tooLate(reader: Reader, mark: number, t: number, when: 'never' | 'only'): void {
    const healed = this.#recoveries.times[mark] ?? t;
    const fault = this.#recoveries.marks[mark]?.fault;
    if (fault) this.#recoveries.neverCaughtUp(fault);
    // While other faults are active nothing is promised; only the quiet time since counts.
    if (this.#faults.quiet(healed, t) <= this.#options.caughtUpUs) return;
    const target = this.#target(reader, mark);
    const seconds = ((t - healed) / 1e6).toFixed(1);
    const text =
      when === 'never' ? `did not have ${target} at the end, ${seconds} s` : `had ${target} only ${seconds} s`;
    this.#findings.add('caught-up', `${reader.name} in ${roomText(reader.room)} ${text} after a heal`, t);
  }
}

const isPosition = (asked: Asked): asked is `${string}:${number}` => asked !== 'start' && asked !== 'latest';

/** The floor of a log only rises, so the start was never past the final one. */
const isNoStart = (asked: Asked, log: Log, seq: number): boolean => asked === 'start' && log.stored && seq > log.floor;

/**
 * Whose recovery a fault is measured by: who was on the gateway that it hit, who was hit, who was in the storm, else everybody but
 * those who are there for a storm. Thousands of readers whose rooms are nearly still would make any other figure small.
 */
function isConcerned({ name, ofStorm }: Reader, { kind, target }: Fault, gateway: string): boolean {
  if (kind.startsWith('gateway') || kind.endsWith('-blackhole')) return gateway === target;
  if (kind.startsWith('client-') && kind !== 'client-storm') return ` ${target} `.includes(` ${name} `);
  return ofStorm === (kind === 'client-storm');
}
