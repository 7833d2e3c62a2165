import { random as seeded } from '../../support/random.js';
import { Digest, type Entry } from '../history.js';

/** Who writes which entries of {@link goodHistory}. */
export type Source = 'publishers' | 'readers' | 'workers' | 'injector' | 'tables';
export const sources: readonly Source[] = ['publishers', 'readers', 'workers', 'injector', 'tables'];

interface Room {
  tenant: string;
  name: string;
  log: string[];
  readers: { name: string; seq: number; joined: boolean }[];
  run: number;
}

export interface HistorySize {
  seed: number;
  /** Steps of 100 ms, each with a few events for each room. */
  steps: number;
  tenants: number;
  roomsPerTenant: number;
  readersPerRoom: number;
}

export const SMALL: HistorySize = { seed: 1, steps: 120, tenants: 2, roomsPerTenant: 2, readersPerRoom: 3 };

const STEP_US = 100_000;
const EPOCH = 'e1';

/** A history in which every promise was kept, with lost acks, refusals, retries, reconnects, faults and runs in it. */
export function* goodHistory(size: HistorySize): Generator<[Source, Entry]> {
  const random = seeded(size.seed);
  const rooms: Room[] = [];
  for (let tenant = 0; tenant < size.tenants; tenant++) {
    for (let room = 0; room < size.roomsPerTenant; room++) {
      const readers = Array.from({ length: size.readersPerRoom }, (_, i) => ({
        name: `reader-${tenant}-${room}-${i}`,
        seq: 0,
        joined: false,
      }));
      rooms.push({ tenant: `t${tenant}`, name: `room-${room}`, log: [], readers, run: 0 });
    }
  }
  const ran: Entry[] = [];
  let made = 0;
  for (let step = 0; step < size.steps; step++) {
    const t = 1_000_000 + step * STEP_US;
    if (step % 40 === 25) yield ['injector', ['fault', t, step, step % 80 < 40 ? 'redis-kill' : 'gateway-kill', 'g0']];
    const faulty = step % 40 >= 25 && step % 40 < 28;
    for (const room of rooms) {
      if (!faulty) {
        yield* publish(room, 2 + Math.floor(random() * 4), t, () => made++, random);
        if (step % 20 === 10) {
          const run = `run-${room.tenant}-${room.name}-${room.run++}`;
          yield* stream(room, run, t + 40_000, room.run % 2 === 0, ran);
        }
      }
      yield* read(room, t + 50_000, step === size.steps - 1, random);
    }
    if (step % 40 === 28) yield ['injector', ['heal', t, step - 3]];
  }
  for (const { tenant, name, log } of rooms) {
    for (let at = 0; at < log.length; at += 500) {
      yield ['tables', ['stored', tenant, name, EPOCH, 0, log.length, at + 1, log.slice(at, at + 500)]];
    }
  }
  for (const entry of ran) yield ['tables', entry];
}

/** Events of one publisher that does not wait for its acks. */
function* publish(
  room: Room,
  count: number,
  t: number,
  next: () => number,
  random: () => number,
): Generator<[Source, Entry]> {
  const { tenant, name, log } = room;
  const publisher = `publisher-${tenant}-${name}-${Math.floor(random() * 3)}`;
  const conn = `${publisher}/1`;
  const mids = Array.from({ length: count }, () => `m${next()}`);
  for (const [i, mid] of mids.entries()) {
    yield ['publishers', ['send', t + i, publisher, tenant, name, mid, conn]];
  }
  for (const [i, mid] of mids.entries()) {
    const at = t + 1000 + i * 100;
    const retry = ['send', at + 10, publisher, tenant, name, mid, `${conn}b`] satisfies Entry;
    const luck = random();
    if (luck < 0.01) {
      yield ['publishers', ['nack', at, publisher, mid, 'bad_request']];
      continue;
    }
    if (luck < 0.012) {
      yield ['publishers', ['unknown', at, publisher, mid, 'timeout']];
      continue;
    }
    if (luck < 0.03) {
      yield ['publishers', ['nack', at, publisher, mid, 'rate_limited']];
      yield ['publishers', retry];
    }
    log.push(mid);
    if (luck >= 0.03 && luck < 0.06) {
      yield ['publishers', ['unknown', at, publisher, mid, 'disconnect']];
      if (luck < 0.032) continue;
      yield ['publishers', retry];
    }
    yield ['publishers', ['ack', at + 30, publisher, mid, EPOCH, log.length, luck < 0.06 && luck >= 0.03]];
  }
}

/** Readers get what is new; now and then one is away for a while and resumes. */
function* read(room: Room, t: number, last: boolean, random: () => number): Generator<[Source, Entry]> {
  const { tenant, name, log } = room;
  for (const reader of room.readers) {
    if (!reader.joined && (last || reader.seq === 0 || random() < 0.5)) {
      const asked = reader.seq === 0 ? 'start' : (`${EPOCH}:${reader.seq}` as const);
      yield ['readers', ['join', t, reader.name, tenant, name, 'g0', asked, EPOCH, reader.seq]];
      reader.joined = true;
    } else if (reader.joined && !last && reader.seq > 0 && random() < 0.02) {
      yield ['readers', ['gone', t, reader.name, 'transport close']];
      reader.joined = false;
    }
    if (reader.joined && reader.seq < log.length) {
      yield ['readers', ['recv', t + 100, reader.name, EPOCH, reader.seq + 1, log.slice(reader.seq)]];
      reader.seq = log.length;
    }
  }
}

/** A run; where `twice`, the worker of its first attempt dies after three parts, and another makes it anew. */
function* stream(room: Room, run: string, t: number, twice: boolean, ran: Entry[]): Generator<[Source, Entry]> {
  const { tenant, name, log } = room;
  yield ['publishers', ['ask', t, run, tenant, name]];
  log.push(`run:${run}:created`);
  const viewers = room.readers.filter(({ joined }) => joined);
  let at = t;
  for (let attempt = twice ? 1 : 2; attempt <= 2; attempt++) {
    const worker = `worker-${attempt}`;
    yield ['workers', ['claim', at, worker, run, attempt, attempt]];
    if (attempt === 2 && twice)
      for (const { name: reader } of viewers) yield ['readers', ['reset', at, reader, run, 2]];
    const text = new Digest();
    const parts = attempt === 1 ? 3 : 8;
    for (let n = 0; n < parts; n++) {
      const digest = text.add(`${run} ${attempt} ${n} `).toString();
      yield ['workers', ['work', at + n * 10, worker, run, attempt, n, [digest]]];
      for (const { name: reader } of viewers) {
        if (n % 2 === 0) yield ['readers', ['chunk', at + n * 10 + 5, reader, run, attempt, n + 1, digest]];
      }
    }
    at += 1000;
    if (attempt < 2) continue;
    ran.push(['ran', run, tenant, name, null, 'completed', attempt, text.toString()]);
    for (const { name: reader } of viewers) yield ['readers', ['end', at, reader, run, 'completed', text.toString()]];
  }
  log.push(`run:${run}:end`);
}
