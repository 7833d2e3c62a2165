import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { roomKey } from '../../src/core/keys.js';
import { type Database, openDatabase } from '../../src/db/database.js';
import type { Failover } from '../../src/db/epochs.js';
import { Line } from '../../src/db/line.js';
import { Servers } from '../../src/db/servers.js';
import { freePort } from '../support/ports.js';
import { freshDatabase } from '../support/postgres.js';
import { startProxy } from '../support/proxy.js';
import { Counts, event, logOf, opened, silent } from './opened.js';

let fresh: Awaited<ReturnType<typeof freshDatabase>>;
let database: Database;
const others: Database[] = [];
beforeAll(async () => {
  fresh = await freshDatabase();
  database = await opened(fresh.url);
});
afterEach(() => Promise.all(others.splice(0).map((other) => other.close())));
afterAll(async () => {
  await database?.close();
  await fresh?.drop();
});

const open = async (failover: Failover, metrics = new Counts()) => {
  const other = await openDatabase({
    url: fresh.url,
    poolSize: 3,
    appRole: 'tutti_app',
    failover,
    metrics,
    log: silent,
  });
  others.push(other);
  return other;
};
const asOwner = <T>(work: Parameters<typeof database.asOwner<T>>[1]) => database.asOwner<T>(5000, work);
/** As if the log had become the one that is here now by `change` of its system, timeline or table. */
const pretend = (change: (identity: string[]) => string[]) =>
  asOwner(async (sql) => {
    const [row] = await sql<{ identity: string }[]>`select identity from tutti.cluster`;
    await sql`update tutti.cluster set identity = ${change(row?.identity.split('/') ?? []).join('/')}`;
  });
const epochsOf = async (log: ReturnType<typeof logOf>) => {
  const rooms = ['a', 'b', 'c'].flatMap((tenant) => [1, 2].map((n) => roomKey(tenant, `room-${n}`)));
  return [...(await log.heads(rooms)).values()].map(({ epoch }) => epoch);
};

test('[EPOCH1] another log: whatever many gateways ask at once, epochs move once, before anything is read or written', async () => {
  const log = logOf(database);
  const asked = ['a', 'b', 'c'].flatMap((tenant) => [1, 2].map((n) => ({ tenant, room: `room-${n}` })));
  for (const { tenant, room } of asked) await log.append(event(tenant, room, 'first'));
  const before = await epochsOf(log);
  const metrics = new Counts();
  const logs = await Promise.all(
    Array.from({ length: 3 }, async () => logOf(await open('synchronous', metrics), {}, metrics)),
  );
  await pretend(([, timeline = '', table = '']) => ['1', timeline, table]);
  const answers = await Promise.all(
    logs.flatMap((each, n) =>
      asked.flatMap(({ tenant, room }) => [
        each.append(event(tenant, room, `again-${n}`)).then(({ epoch }) => epoch),
        each.read(tenant, room, { limit: 1, order: 'asc' }).then((page) => page?.epoch),
      ]),
    ),
  );
  const after = await epochsOf(log);
  expect(new Set([...before, ...after]).size).toBe(12);
  expect(new Set(answers)).toEqual(new Set(after));
  expect(metrics.added.get('database_changes')).toBe(1);
});

test('[EPOCH1] a promotion moves the epochs, unless standbys are said to have all that was acknowledged', async () => {
  const timelineOf = ([system = '', , table = '']: string[]) => [system, '0', table];
  const before = await epochsOf(logOf(database));
  await pretend(timelineOf);
  const kept = await epochsOf(logOf(await open('synchronous')));
  expect(kept).toEqual(before);
  await pretend(timelineOf);
  expect(new Set([...(await epochsOf(logOf(await open('any')))), ...before]).size).toBe(12);
});

test('[EPOCH1] what came from a backup is no promotion: another table, an older timeline, a server told so', async () => {
  const log = logOf(await open('synchronous'));
  const moved = async (change: (identity: string[]) => string[]) => {
    const before = await epochsOf(log);
    await pretend(change);
    const after = await epochsOf(log);
    return new Set([...before, ...after]).size === 12;
  };
  expect(await moved(([system = '', timeline = '']) => [system, timeline, '1'])).toBe(true);
  expect(await moved(([system = '', timeline = '', table = '']) => [system, `${timeline}1`, table])).toBe(true);
  const name = new URL(fresh.url).pathname.slice(1);
  await asOwner((sql) => sql.unsafe(`alter database ${name} set tutti.restored = 'a backup'`).execute());
  expect(await moved(([system = '', , table = '']) => [system, '0', table])).toBe(true);
  await asOwner((sql) => sql.unsafe(`alter database ${name} reset tutti.restored`).execute());
});

test('[RUN2] where epochs move, a lease and a fence from before are worth nothing', async () => {
  const insert = (id: string, state: string) =>
    database.withTenants(
      ['a'],
      (tx) => tx`
        insert into tutti.runs (id, tenant_id, room_id, model, state, max_attempts, fence, input, initiator, lease_until,
          deadline, created_at, queued_at)
        select ${id}, 'a', id, 'm', ${state}, 3, 7, '{}', '{}', clock_timestamp() + interval '1 hour',
          clock_timestamp() + interval '1 hour', 0, 0 from tutti.rooms where tenant_id = 'a' limit 1`,
    );
  await insert('streams', 'streaming');
  await insert('ended', 'completed');
  await pretend(([, timeline = '', table = '']) => ['1', timeline, table]);
  const runs = await database.withTenants(
    ['a'],
    (tx) => tx<{ id: string; fence: number; over: boolean }[]>`
      select id, fence, lease_until < clock_timestamp() as over from tutti.runs order by id`,
  );
  expect(runs).toEqual([
    { id: 'ended', fence: 7, over: false },
    { id: 'streams', fence: 1_000_007, over: true },
  ]);
});

test('a URL names several servers as libpq has it', () => {
  const { list, url } = new Servers(
    'postgres://u:p%40w@a:5433,[::1],b/db?sslmode=require&target_session_attrs=primary',
  );
  expect(list).toEqual([
    { host: 'a', port: 5433 },
    { host: '::1', port: 5432 },
    { host: 'b', port: 5432 },
  ]);
  expect(url).toBe('postgres://u:p%40w@a:5433/db?sslmode=require');
  expect(new Servers('postgres://u@h/db').list).toEqual([{ host: 'h', port: 5432 }]);
});

test('[FAIL1] the one of several servers that is there is found; where none is, the answer comes in bounded time', async () => {
  const there = new URL(fresh.url);
  const [dead, deader] = [await freePort(), await freePort()];
  const urlOf = (...hosts: string[]) => fresh.url.replace(there.host, hosts.join(','));
  const line = (url: string) => new Line({ servers: new Servers(url), prepare: true, connectTimeoutMs: 1000 });
  const found = line(urlOf(`127.0.0.1:${dead}`, there.host));
  const none = line(urlOf(`127.0.0.1:${dead}`, `127.0.0.1:${deader}`));
  try {
    expect(await found.run(5000, (sql) => sql`select 1 as one`)).toEqual([{ one: 1 }]);
    for (let n = 0; n < 3; n++) {
      await expect(none.run(5000, (sql) => sql`select 1`)).rejects.toMatchObject({ code: 'ECONNREFUSED' });
    }
    const used = process.cpuUsage();
    await sleep(300);
    expect(process.cpuUsage(used).user).toBeLessThan(250_000);
  } finally {
    await Promise.all([found.close(100), none.close(100)]);
  }
});

test('[FAIL1] a server that froze hides no other one', async () => {
  const there = new URL(fresh.url);
  const frozen = await startProxy(Number(there.port));
  frozen.blackhole();
  const url = fresh.url.replace(there.host, `127.0.0.1:${frozen.port},${there.host}`);
  const line = new Line({ servers: new Servers(url), prepare: true, connectTimeoutMs: 5000 });
  try {
    await expect(line.run(300, (sql) => sql`select 1`)).rejects.toMatchObject({ code: 'log_unavailable' });
    expect(await line.run(5000, (sql) => sql`select 1 as one`)).toEqual([{ one: 1 }]);
  } finally {
    await line.close(100);
    await frozen.close();
  }
});
