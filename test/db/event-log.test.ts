import postgres from 'postgres';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { roomKey } from '../../src/core/keys.js';
import type { EventLog } from '../../src/core/log.js';
import type { Database } from '../../src/db/database.js';
import type { JsonText } from '../../src/protocol/primitives.js';
import { eventually } from '../support/eventually.js';
import { freshDatabase } from '../support/postgres.js';
import { Counts, event, logOf, opened, readAll } from './opened.js';

let fresh: Awaited<ReturnType<typeof freshDatabase>>;
let database: Database;
let log: EventLog;
const counts = new Counts();

beforeAll(async () => {
  fresh = await freshDatabase();
  database = await opened(fresh.url);
  log = logOf(database, {}, counts);
});
afterAll(async () => {
  await database?.close();
  await fresh?.drop();
});

const code = (expected: string) => expect.objectContaining({ code: expected });

describe('append', () => {
  test('[LOG2] concurrent publishes of two gateways get consecutive seqs, each publisher in its order', async () => {
    const second = logOf(database);
    const rooms = ['one', 'two', 'three'];
    const publishers = Array.from({ length: 12 }, (_, p) => ({ user: `u${p}`, log: p % 2 ? second : log }));
    await Promise.all(
      publishers.map(async ({ user, log }) => {
        const acks: Promise<unknown>[] = [];
        for (let i = 0; i < 60; i++) {
          for (const room of rooms) acks.push(log.append(event('a', room, `${user}-${i}`, i, user)));
          if (i % 7 === 0) await Promise.all(acks);
        }
        await Promise.all(acks);
      }),
    );
    for (const room of rooms) {
      const events = await readAll(log, 'a', room);
      expect(events.map(({ seq }) => seq)).toEqual(Array.from({ length: 720 }, (_, i) => i + 1));
      const last = new Map<string, number>();
      for (const { by, data } of events) {
        expect(Number(data)).toBe((last.get(by) ?? -1) + 1);
        last.set(by, Number(data));
      }
    }
  });

  test('[LOG3] a retry with the same mid gets its first answer and is stored once, also while the first is in flight', async () => {
    const before = counts.added.get('publish_duplicates') ?? 0;
    const [first, twin] = await Promise.all([
      log.append(event('a', 'retry', 'm')),
      log.append(event('a', 'retry', 'm')),
    ]);
    const later = await log.append(event('a', 'retry', 'm', 'other data'));
    expect(first).toMatchObject({ seq: 1, duplicate: false });
    expect(twin).toEqual({ ...first, duplicate: true });
    expect(later).toEqual({ ...first, duplicate: true });
    expect(await readAll(log, 'a', 'retry')).toHaveLength(1);
    expect(counts.added.get('publish_duplicates')).toBe(before + 2);
  });

  test('[LOG3] a mid of another publisher is a conflict and tells nothing; a changed name is the same publisher', async () => {
    const mine = event('a', 'conflict', 'm');
    await log.append(mine);
    await expect(log.append(event('a', 'conflict', 'm', 'm', 'mallory'))).rejects.toEqual(code('conflict'));
    const named = { ...mine, by: '{"kind":"user","id":"alice","name":"Alice"}' as JsonText };
    expect(await log.append(named)).toMatchObject({ seq: 1, duplicate: true });
    const [one, two] = await Promise.allSettled([
      log.append(event('a', 'conflict', 'n', 1, 'alice')),
      log.append(event('a', 'conflict', 'n', 2, 'bob')),
    ]);
    expect(one).toMatchObject({ status: 'fulfilled', value: { seq: 2 } });
    expect(two).toMatchObject({ status: 'rejected', reason: { code: 'conflict' } });
  });

  test('[ISO1] rooms of the same name in two tenants are two rooms', async () => {
    const [a, b] = await Promise.all([log.append(event('a', 'same', 'm')), log.append(event('b', 'same', 'm'))]);
    expect([a.seq, b.seq]).toEqual([1, 1]);
    expect(a.epoch).not.toBe(b.epoch);
  });

  test('JSON comes back as the text it came in: escapes, key order, numbers', async () => {
    const texts = [
      '"\\u0000 and \\ud800"',
      '{"b":1,"a":2,"b":3,"":"\\\\\\""}',
      '1.10',
      '1e400',
      '"{a,\\"b\\",NULL}"',
      '"\u{1f600} \u2028"',
      'null',
    ] as JsonText[];
    for (const [i, data] of texts.entries()) await log.append({ ...event('a', 'json', `m${i}`), data });
    expect((await readAll(log, 'a', 'json')).map(({ data }) => data)).toEqual(texts);
  });

  test('a publisher whose id Postgres cannot hold as text is told duplicates all the same', async () => {
    const strange = { ...event('a', 'nul', 'm'), by: '{"kind":"user","id":"\\u0000"}' as JsonText };
    expect(await log.append(strange)).toMatchObject({ duplicate: false });
    expect(await log.append(strange)).toMatchObject({ duplicate: true });
  });

  test('an event that Postgres refuses is refused alone; the others keep their order', async () => {
    await database.asOwner(5000, (sql) =>
      sql.unsafe(`alter table tutti.events add constraint poison check (type <> 'poison')`),
    );
    const results = await Promise.allSettled(
      Array.from({ length: 40 }, (_, i) =>
        log.append({ ...event('a', 'poisoned', `m${i}`, i), type: i % 13 === 5 ? 'poison' : 'message' }),
      ),
    );
    const refused = results.flatMap((result, i) => (result.status === 'rejected' ? [[i, result.reason.code]] : []));
    expect(refused).toEqual([5, 18, 31].map((i) => [i, 'bad_request']));
    const events = await readAll(log, 'a', 'poisoned');
    expect(events.map(({ seq }) => seq)).toEqual(Array.from({ length: 37 }, (_, i) => i + 1));
    expect(events.map(({ data }) => Number(data))).toEqual(
      events.map(({ data }) => Number(data)).sort((x, y) => x - y),
    );
    await expect(log.append(event('nobody', 'room', 'm'))).rejects.toEqual(code('bad_request'));
  });

  test('a full queue refuses with `overloaded` and keeps room for other tenants; what waits too long is refused', async () => {
    const small = logOf(database, { lanes: 1, queueMax: 8, batchMax: 2, timeoutMs: 600 });
    await log.append(event('a', 'held', 'first'));
    let letGo = () => {};
    const held = database.asOwner(10_000, (sql) =>
      sql.begin(async (tx) => {
        await tx`select 1 from tutti.rooms where name = 'held' for update`;
        await new Promise<void>((resolve) => {
          letGo = resolve;
        });
      }),
    );
    await new Promise((wait) => setTimeout(wait, 100));
    const waiting = Array.from({ length: 6 }, (_, i) => small.append(event('a', 'held', `w${i}`)));
    await expect(small.append(event('a', 'held', 'more'))).rejects.toMatchObject({
      code: 'overloaded',
      retryAfterMs: expect.any(Number),
    });
    waiting.push(small.append(event('b', 'held', 'w6')), small.append(event('b', 'held', 'w7')));
    await expect(small.append(event('c', 'held', 'more'))).rejects.toEqual(code('overloaded'));
    for (const result of await Promise.allSettled(waiting)) {
      expect(result).toMatchObject({ status: 'rejected', reason: { code: 'log_unavailable' } });
    }
    letGo();
    await held;
    expect(await small.append(event('a', 'held', 'after'))).toMatchObject({ duplicate: false });
    const events = await readAll(log, 'a', 'held');
    expect(events.map(({ seq }) => seq)).toEqual(events.map((_, i) => i + 1));
  });

  test('[DRN1] a drain lets in nothing new and answers everything accepted', async () => {
    const leaving = logOf(database);
    const accepted = Array.from({ length: 200 }, (_, i) => leaving.append(event('a', 'leaving', `m${i}`)));
    const drained = leaving.drain();
    await expect(leaving.append(event('a', 'leaving', 'late'))).rejects.toEqual(code('draining'));
    await drained;
    expect((await Promise.all(accepted)).map(({ seq }) => seq)).toEqual(Array.from({ length: 200 }, (_, i) => i + 1));
  });
});

describe('read', () => {
  test('open makes a room once; heads answers many rooms of several tenants and leaves out what is not there', async () => {
    const [made, again] = await Promise.all([log.open('a', 'opened'), log.open('a', 'opened')]);
    expect(made).toEqual({ epoch: again.epoch, head: 0, floor: 0 });
    await log.append(event('b', 'opened', 'm'));
    const heads = await log.heads([roomKey('a', 'opened'), roomKey('b', 'opened'), roomKey('c', 'opened')]);
    expect(heads.get(roomKey('a', 'opened'))).toEqual(made);
    expect(heads.get(roomKey('b', 'opened'))?.head).toBe(1);
    expect(heads.size).toBe(2);
    const many = Array.from({ length: 2500 }, (_, i) => roomKey('c', `many-${i}`));
    await Promise.all(many.slice(0, 1200).map((_, i) => log.append(event('c', `many-${i}`, 'm'))));
    expect((await log.heads(many)).size).toBe(1200);
    expect(await log.heads([])).toEqual(new Map());
  });

  test('[RES1] pages go both ways between their bounds; a room that is not there is undefined', async () => {
    await Promise.all(Array.from({ length: 10 }, (_, i) => log.append(event('a', 'paged', `m${i}`))));
    const seqs = async (range: Parameters<EventLog['read']>[2]) =>
      (await log.read('a', 'paged', range))?.events.map(({ seq }) => seq);
    expect(await seqs({ limit: 3, order: 'asc' })).toEqual([1, 2, 3]);
    expect(await seqs({ limit: 3, order: 'desc' })).toEqual([10, 9, 8]);
    expect(await seqs({ after: 4, before: 7, limit: 9, order: 'asc' })).toEqual([5, 6]);
    expect(await seqs({ before: 3, limit: 9, order: 'desc' })).toEqual([2, 1]);
    expect(await seqs({ after: 10, limit: 9, order: 'asc' })).toEqual([]);
    expect(await log.read('a', 'nothing', { limit: 1, order: 'asc' })).toBeUndefined();
    expect(await log.read('b', 'paged', { limit: 1, order: 'asc' })).toBeUndefined();
  });

  test('a page of large events ends early, never before its first', async () => {
    const large = JSON.stringify('x'.repeat(200_000)) as JsonText;
    for (let i = 0; i < 5; i += 1) await log.append({ ...event('a', 'large', `m${i}`), data: large });
    const seqs = async (range: Parameters<EventLog['read']>[2]) =>
      (await log.read('a', 'large', range))?.events.map(({ seq }) => seq);
    expect(await seqs({ limit: 9, order: 'asc' })).toEqual([1, 2, 3]);
    expect(await seqs({ after: 3, limit: 9, order: 'asc' })).toEqual([4, 5]);
    expect(await seqs({ limit: 9, order: 'desc' })).toEqual([5, 4, 3]);
    const huge = JSON.stringify('x'.repeat(600_000)) as JsonText;
    await log.append({ ...event('a', 'large', 'huge'), data: huge });
    expect(await seqs({ limit: 9, order: 'desc' })).toEqual([6]);
  });

  test('[LIM6] a page costs the page: in a long room that Postgres has no statistics of no other rows are looked at', async () => {
    const [events, pages, limit] = [20_000, 20, 250];
    const { id } = await database.withTenants(['c'], async (tx) => {
      const [room] = await tx<{ id: number }[]>`
        insert into tutti.rooms (tenant_id, name, epoch, head) values ('c', 'long', 'e', ${events}) returning id`;
      if (!room) throw new Error('no room');
      await tx`insert into tutti.events (room_id, seq, tenant_id, mid, type, data, by, at)
        select ${room.id}, n, 'c', 'm' || n, 'a', to_json(repeat('x', 600)), '{"kind":"server","id":"s"}', 0
        from generate_series(1, ${events}::integer) n`;
      return room;
    });
    const server = postgres(fresh.url, { max: 1, onnotice: () => undefined });
    const lookedAt = async () => {
      const [row] = await server<{ rows: number }[]>`
        select (coalesce(idx_tup_fetch, 0) + coalesce(seq_tup_read, 0))::float8 as rows
        from pg_stat_user_tables where schemaname = 'tutti' and relname = 'events'`;
      return row?.rows ?? 0;
    };
    try {
      expect(id).toBeGreaterThan(0);
      const before = await lookedAt();
      for (let n = 0; n < pages; n += 1) {
        const order = n % 2 ? 'asc' : 'desc';
        const after = n % 2 ? n * 370 : 0;
        expect((await log.read('c', 'long', { after, limit, order }))?.events).toHaveLength(limit);
      }
      // Sessions tell what they did with their next transaction, where a second has passed.
      await eventually('it is counted', async () => {
        await Promise.all(Array.from({ length: 8 }, () => log.heads([roomKey('c', 'long')])));
        return (await lookedAt()) - before >= pages * limit * 0.9;
      });
      expect((await lookedAt()) - before).toBeLessThan(pages * limit * 2);
    } finally {
      await server.end({ timeout: 1 });
    }
  }, 45_000);

  test('[RES1] nothing at or below the floor is read', async () => {
    await Promise.all(Array.from({ length: 5 }, (_, i) => log.append(event('a', 'floored', `m${i}`))));
    await database.withTenants(['a'], (tx) => tx`update tutti.rooms set floor = 3 where name = 'floored'`);
    const page = await log.read('a', 'floored', { after: 1, limit: 9, order: 'asc' });
    expect(page).toMatchObject({ head: 5, floor: 3, events: [{ seq: 4 }, { seq: 5 }] });
    expect((await log.heads([roomKey('a', 'floored')])).get(roomKey('a', 'floored'))?.floor).toBe(3);
  });

  test('list goes by name from a cursor; summary tells one room', async () => {
    await Promise.all(['x', 'y', 'z'].map((room) => log.append(event('b', `list-${room}`, 'm'))));
    const page = await log.list('b', 'list-', 2);
    expect(page.map(({ room }) => room)).toEqual(['list-x', 'list-y']);
    expect(await log.summary('b', 'list-x')).toEqual(page[0]);
    expect(page[0]).toMatchObject({ head: 1, floor: 0, createdAt: expect.any(Number) });
    expect(await log.summary('a', 'list-x')).toBeUndefined();
  });

  test('an erased room is gone with its events; the next of that name has another epoch', async () => {
    const first = await log.append(event('a', 'erased', 'm'));
    expect(await log.erase('b', 'erased')).toBe(false);
    expect(await log.erase('a', 'erased')).toBe(true);
    expect(await log.erase('a', 'erased')).toBe(false);
    const second = await log.append(event('a', 'erased', 'm'));
    expect(second).toMatchObject({ seq: 1, duplicate: false });
    expect(second.epoch).not.toBe(first.epoch);
  });

  test('[LOG2] appends and erasures of one room at the same time leave consecutive seqs', async () => {
    const appends = Array.from({ length: 300 }, (_, i) => async () => {
      await new Promise((wait) => setTimeout(wait, i / 3));
      return log.append(event('a', 'contended', `m${i}`));
    });
    const erasures = Array.from({ length: 20 }, (_, i) => async () => {
      await new Promise((wait) => setTimeout(wait, i * 5));
      await log.erase('a', 'contended');
    });
    await Promise.all([...appends, ...erasures].map((act) => act()));
    const events = await readAll(log, 'a', 'contended');
    expect(events.map(({ seq }) => seq)).toEqual(events.map((_, i) => i + 1));
  });
});
