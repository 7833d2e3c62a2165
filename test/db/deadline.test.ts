import { afterAll, afterEach, beforeAll, expect, test, vi } from 'vitest';
import type { Database } from '../../src/db/database.js';
import { freshDatabase } from '../support/postgres.js';
import { type FaultProxy, startProxy } from '../support/proxy.js';
import { opened } from './opened.js';

/*
 * Whatever a command or a request asks of the database has a deadline from its beginning, which includes the wait for a
 * connection. The wall clock is stepped while one waits.
 */

const TIMEOUT_MS = 3000;
const FIVE_MINUTES_MS = 300_000;
const fresh = await freshDatabase();
let proxy: FaultProxy;
let database: Database;
beforeAll(async () => {
  const url = new URL(fresh.url);
  proxy = await startProxy(Number(url.port));
  url.port = String(proxy.port);
  url.hostname = '127.0.0.1';
  database = await opened(url.href, TIMEOUT_MS);
});
afterEach(() => vi.restoreAllMocks());
afterAll(async () => {
  proxy.heal();
  await database.close();
  await proxy.close();
  await fresh.drop();
});

const sleep = (ms: number) => new Promise((wait) => setTimeout(wait, ms));
const step = (ms: number) => {
  const { now } = Date;
  vi.spyOn(Date, 'now').mockImplementation(() => now() + ms);
};
/** As many transactions as a tenant may have at a time, for half a second, and one more that waits for them. */
function oneWaits(seconds: number) {
  const sleeping = (s: number) => database.withTenants(['a'], (tx) => tx`select pg_sleep(${s}), 1 as one`);
  const holding = Promise.all([0.5, 0.5, 0.5].map(sleeping));
  return { holding, waiting: sleeping(seconds) };
}

test('[ERR1] a clock put forward 5 minutes while a command waits for a connection: it has its time all the same', async () => {
  const { holding, waiting } = oneWaits(0);
  step(FIVE_MINUTES_MS);
  expect(await waiting).toMatchObject([{ one: 1 }]);
  await holding;
});

test('[ERR1] a clock put back 5 minutes while a command waits, and a Postgres that falls silent: it is refused in time all the same', async () => {
  const { holding, waiting } = oneWaits(2);
  step(-FIVE_MINUTES_MS);
  const refused = expect(waiting).rejects.toMatchObject({ code: 'log_unavailable' });
  await holding;
  await sleep(200);
  proxy.blackhole();
  await refused;
}, 10_000);
