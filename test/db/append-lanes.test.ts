import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import type { Appended, EventLog } from '../../src/core/log.js';
import type { Database } from '../../src/db/database.js';
import { eventually } from '../support/eventually.js';
import { freshDatabase } from '../support/postgres.js';
import { Counts, event, logOf, opened, readAll } from './opened.js';

/* Which lane commits what, while rooms are locked by somebody else. */

let fresh: Awaited<ReturnType<typeof freshDatabase>>;
let database: Database;
const holds: (() => Promise<void>)[] = [];

beforeAll(async () => {
  fresh = await freshDatabase();
  database = await opened(fresh.url);
});
afterEach(async () => {
  for (const letGo of holds.splice(0)) await letGo();
});
afterAll(async () => {
  await database?.close();
  await fresh?.drop();
});

/** Locks a room that nobody but this test writes to; what is appended to it stands until the answer is called. */
async function hold(room: string, tenant = 'a'): Promise<() => Promise<void>> {
  await database.withTenants(
    ['a', 'b'],
    (tx) => tx`insert into tutti.rooms (tenant_id, name, epoch) values (${tenant}, ${room}, 'e')`,
  );
  let letGo = () => {};
  let locked = () => {};
  const isLocked = new Promise<void>((resolve) => {
    locked = resolve;
  });
  const held = database.asOwner(10_000, (sql) =>
    sql.begin(async (tx) => {
      await tx`select 1 from tutti.rooms where name = ${room} for update`;
      locked();
      await new Promise<void>((resolve) => {
        letGo = resolve;
      });
    }),
  );
  await isLocked;
  const end = async () => {
    letGo();
    await held;
  };
  holds.push(end);
  return end;
}

const stuck = (tenant: string, room: string, log: EventLog, count: number): Promise<Appended>[] =>
  Array.from({ length: count }, (_, n) => log.append(event(tenant, room, `${room}-${n}`, n)));

/** Until an append stands at the lock of a room. */
const stands = (count: number) =>
  eventually('appends stand at locks', async () => {
    const rows = await database.asOwner(
      5000,
      (sql) => sql`select 1 from pg_locks where not granted and locktype in ('transactionid', 'tuple')`,
    );
    return rows.length >= count;
  });

test('[LIM7] however slow the commits of a tenant are, it leaves a lane to the others', async () => {
  const log = logOf(database, { lanes: 3 });
  await hold('slow-1');
  await hold('slow-2');
  const slow = stuck('a', 'slow-1', log, 3);
  await stands(1);
  slow.push(...stuck('a', 'slow-2', log, 3));
  await stands(2);
  // It has two lanes of three now; what else it has waits, however long.
  const own = log.append(event('a', 'free', 'm'));
  let settled = 0;
  for (const one of [...slow, own]) void one.finally(() => (settled += 1));
  for (let n = 0; n < 20; n++) expect(await log.append(event('b', `quick-${n % 3}`, `m${n}`))).toBeTruthy();
  await new Promise((wait) => setTimeout(wait, 100));
  expect(await log.append(event('b', 'quick-0', 'last'))).toMatchObject({ duplicate: false });
  expect(settled).toBe(0);
  await holds.pop()?.();
  expect(await own).toMatchObject({ seq: 1 });
  await holds.pop()?.();
  await Promise.all(slow);
});

test('[LIM7] a tenant with a room that stands goes on in its other rooms, after a moment', async () => {
  const log = logOf(database, { lanes: 3 });
  const letGo = await hold('stands');
  const slow = stuck('a', 'stands', log, 5);
  await stands(1);
  slow.push(...Array.from({ length: 3 }, (_, n) => log.append(event('a', 'stands', `late-${n}`, 5 + n))));
  for (let n = 0; n < 5; n++) expect(await log.append(event('a', 'goes-on', `m${n}`))).toMatchObject({ seq: n + 1 });
  await letGo();
  // What came to the room later was not committed past what stood.
  expect((await Promise.all(slow)).map(({ seq }) => seq)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  expect((await readAll(log, 'a', 'stands')).map(({ data }) => Number(data))).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
});

test('[LIM7] what a tenant appends to many rooms during a commit shares the next one', async () => {
  const counts = new Counts();
  const log = logOf(database, { lanes: 2 }, counts);
  const letGo = await hold('first');
  const first = log.append(event('a', 'first', 'm'));
  await stands(1);
  const others: Promise<Appended>[] = [];
  for (let n = 0; n < 50; n++) {
    others.push(log.append(event('a', `shared-${n}`, 'm')));
    if (n % 5 === 0) await new Promise((wait) => setTimeout(wait, 5));
  }
  await letGo();
  await Promise.all([first, ...others]);
  expect(counts.observed.get('append_batch')).toBe(2);
});

test('lanes that failed and have nothing to commit do not say for long that commits fail', async () => {
  const log = logOf(database, { lanes: 3, timeoutMs: 600 });
  await hold('fails-1', 'a');
  await hold('fails-2', 'b');
  const asked = [log.append(event('a', 'fails-1', 'm'))];
  // Else both go into one commit.
  await stands(1);
  asked.push(log.append(event('b', 'fails-2', 'm')));
  const failed = await Promise.allSettled(asked);
  expect(failed.map(({ status }) => status)).toEqual(['rejected', 'rejected']);
  expect(log.failingSince()).toBeDefined();
  // The attempts under way are cut at half that time; their rooms stay locked until then, so that they fail.
  await new Promise((wait) => setTimeout(wait, 500));
  expect(log.failingSince()).toBeDefined();
  for (const letGo of holds.splice(0)) await letGo();
  // Two lanes failed; one of them, or the third, commits this.
  await log.append(event('b', 'works', 'm'));
  await eventually('none says that it fails', () => log.failingSince() === undefined);
});
