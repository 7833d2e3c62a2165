import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { connect } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { startPostgres } from '../support/postgres.js';
import { startProxy } from '../support/proxy.js';
import { startRedis } from '../support/redis.js';
import { devToken } from '../support/tokens.js';
import { Reader } from './feed-reader.js';
import { Publisher } from './log-publisher.js';
import { expectWholeLog, storedEvents } from './log-table.js';
import { sleep, startPair, Undo, userToken } from './run-stage.js';

const undo = new Undo();
afterEach(() => undo.all());

const PUBLISHERS = 6;
/** No run of the test gets larger than this, however long its faults take. */
const EVENTS_EACH = 800;

test('[LOG1][LOG2][LOG3][LOG4][FEED1] kill -9 of a gateway, of Redis and of Postgres under load', async () => {
  const postgres = undo.add(await startPostgres(), (one) => one.destroy());
  const redis = undo.add(await startRedis(), (one) => one.stop());
  const { a, b, env } = await startPair(undo, { databaseUrl: postgres.url, redisUrl: redis.url });
  const urls = [a.url, b.url];
  const room = 'chaos';
  const tokenOf = (name: string) => devToken({ user: name });

  const readers: Reader[] = [];
  for (const first of [0, 1, 0, 1]) {
    const reader = new Reader(urls, room, await tokenOf('reader'), first);
    readers.push(undo.add(await reader.follow(), (one) => one.stop()));
  }
  const publishers: Publisher[] = [];
  for (let n = 0; n < PUBLISHERS; n += 1) {
    const order = n % 2 === 0 ? urls : [...urls].reverse();
    publishers.push(new Publisher(`p${n}`, order, room, await tokenOf(`p${n}`)));
  }
  let over = false;
  const stored = () => publishers.reduce((sum, { acked }) => sum + acked.length, 0);
  const publishing = Promise.all(
    publishers.map((one) => one.publish(() => over || one.acked.length >= EVENTS_EACH, 15)),
  );
  const goesOn = async () => {
    const from = publishers.map(({ acked }) => acked.length);
    const moved = () => publishers.every(({ acked }, n) => acked.length >= Math.min((from[n] ?? 0) + 15, EVENTS_EACH));
    await eventually('every publisher goes on', moved, 40_000);
  };

  await goesOn();
  await a.kill9();
  await goesOn();
  const again = undo.add(await startGateway({ env, port: a.port }), (one) => one.stop());
  await redis.kill9();
  await goesOn();
  await redis.start();
  await goesOn();
  await postgres.kill9();
  await sleep(700);
  await postgres.start();
  await goesOn();
  await b.kill9();
  await goesOn();
  over = true;
  await publishing;

  expect(again.running()).toBe(true);
  expect(stored()).toBeGreaterThan(PUBLISHERS * 60);
  expect(publishers.reduce((sum, { retries }) => sum + retries, 0)).toBeGreaterThan(0);
  const mids = await expectWholeLog(postgres.url, room, publishers);
  for (const reader of readers) {
    await reader.reaches(mids.length);
    expect(reader.faults).toEqual([]);
    expect(reader.mids).toEqual(mids);
    expect(reader.joins).toBeGreaterThan(1);
  }
}, 120_000);

test('[LOG1][LOG2][LOG3][LOG4][FEED1] links to Postgres and Redis that hang and break, and gateways that stand still', async () => {
  const redis = undo.add(await startRedis(), (one) => one.stop());
  const database = undo.add(await startPostgres(), (one) => one.destroy());
  const env = {
    TUTTI_REDIS_PREFIX: 'links:',
    TUTTI_APPEND_TIMEOUT_MS: '1500',
  };
  const stage = async () => {
    const toPostgres = undo.add(await startProxy(Number(new URL(database.url).port)), (one) => one.close());
    const toRedis = undo.add(await startProxy(redis.port), (one) => one.close());
    const through = new URL(database.url);
    through.port = String(toPostgres.port);
    const links = { DATABASE_URL: through.href, REDIS_URL: `redis://127.0.0.1:${toRedis.port}` };
    const gateway = undo.add(await startGateway({ env: { ...env, ...links } }), (one) => one.stop());
    return { gateway, toPostgres, toRedis };
  };
  const stages = [await stage(), await stage()];
  const urls = stages.map(({ gateway }) => gateway.url);
  const room = 'links';
  const readers = await Promise.all(
    [0, 1, 0, 1].map(async (first) => new Reader(urls, room, await userToken('reader'), first).follow()),
  );
  for (const reader of readers) undo.add(reader, (one) => one.stop());
  const publishers = await Promise.all(
    [0, 1, 2, 3].map(async (n) => {
      const order = n % 2 === 0 ? urls : [...urls].reverse();
      return new Publisher(`p${n}`, order, room, await userToken(`p${n}`), 3000);
    }),
  );
  let over = false;
  const publishing = Promise.all(
    publishers.map((one) => one.publish(() => over || one.acked.length >= EVENTS_EACH, 10)),
  );
  const goesOn = async () => {
    const from = publishers.map(({ acked }) => acked.length);
    const moved = () => publishers.every(({ acked }, n) => acked.length >= Math.min((from[n] ?? 0) + 10, EVENTS_EACH));
    await eventually('every publisher goes on', moved, 40_000);
  };
  for (const { gateway, toPostgres, toRedis } of stages) {
    await goesOn();
    toPostgres.drop();
    await goesOn();
    toPostgres.blackhole();
    await sleep(2500);
    toPostgres.heal(); // what hung is delivered now, after its publisher was refused and went on
    await goesOn();
    toRedis.blackhole();
    await goesOn();
    toPostgres.blackhole();
    await sleep(600);
    toPostgres.cut();
    await sleep(300);
    toPostgres.heal();
    toRedis.drop();
    toRedis.heal();
    await goesOn();
    gateway.signal('SIGSTOP');
    await sleep(1500);
    gateway.signal('SIGCONT');
    toRedis.delay(150);
    await goesOn();
    toRedis.heal();
  }
  over = true;
  await publishing;
  expect(stages.map(({ gateway }) => gateway.running())).toEqual([true, true]);
  const mids = await expectWholeLog(database.url, room, publishers);
  for (const reader of readers) {
    await reader.reaches(mids.length);
    expect(reader.faults).toEqual([]);
    expect(reader.mids).toEqual(mids);
  }
}, 120_000);

describe('two gateways, nothing fails', () => {
  const shared = new Undo();
  let a: GatewayProcess;
  let b: GatewayProcess;
  let databaseUrl: string;
  beforeAll(async () => {
    // Of the tenant's rate tests of limits tell.
    const pair = await startPair(shared, { env: { TUTTI_TENANT_PUBLISHES_PER_SECOND: '100000' } });
    ({ a, b } = pair);
    databaseUrl = pair.env.DATABASE_URL ?? '';
  });
  afterAll(() => shared.all());

  const client = async (gateway: GatewayProcess, user: string) =>
    undo.add(await connect({ url: gateway.url, token: await userToken(user) }), (one) => one.close());
  const message = (room: string, mid: string, data: unknown = mid) => ({ room, type: 'chat', data, mid });

  test('[LOG2] publishers that do not wait for their acks keep their order, over two gateways', async () => {
    const users = ['ann', 'bob', 'cleo', 'dan'];
    const clients = await Promise.all(users.map((user, n) => client(n % 2 === 0 ? a : b, user)));
    const replies = await Promise.all(
      clients.map((one, user) =>
        Promise.all(
          Array.from({ length: 150 }, (_, n) =>
            one.call('event.publish', message('pipelined', `${users[user]}-${n}`, { mid: `${users[user]}-${n}` })),
          ),
        ),
      ),
    );
    for (const acks of replies) {
      const seqs = acks.map(({ position }) => position.seq);
      expect(seqs).toEqual([...seqs].sort((one, other) => one - other));
    }
    const events = await storedEvents(databaseUrl, 'pipelined');
    expect(events.map(({ seq }) => seq)).toEqual(Array.from({ length: 600 }, (_, n) => n + 1));
    const told = new Map(replies.flat().map(({ position, mid }) => [position.seq, mid]));
    expect(events.map(({ seq, mid }) => [seq, mid])).toEqual([...told].sort(([one], [other]) => one - other));
  });

  test('[LOG3] the same mid at both gateways at once is stored once and answered alike', async () => {
    const [one, other] = await Promise.all([client(a, 'ann'), client(b, 'ann')]);
    const mids = Array.from({ length: 40 }, (_, n) => `twice-${n}`);
    const answers = await Promise.all(
      mids.map((mid) => Promise.all([one, other].map((from) => from.call('event.publish', message('twice', mid))))),
    );
    for (const [first, second] of answers) {
      expect(first?.position).toEqual(second?.position);
      expect(first?.at).toBe(second?.at);
      expect([first?.duplicate, second?.duplicate].sort()).toEqual([false, true]);
    }
    expect((await storedEvents(databaseUrl, 'twice')).map(({ mid }) => mid).sort()).toEqual([...mids].sort());
  });

  test('[LOG3] a mid that belongs to another publisher is refused with conflict, on any gateway', async () => {
    const ann = await client(a, 'ann');
    const bob = await client(b, 'bob');
    const first = await ann.call('event.publish', message('mine', 'm1', 'of ann'));
    for (const gateway of [a, b]) {
      const other = await client(gateway, 'bob');
      await expect(other.call('event.publish', message('mine', 'm1', 'of bob'))).rejects.toMatchObject({
        error: { code: 'conflict', retryable: false },
      });
    }
    expect(await ann.call('event.publish', message('mine', 'm1', 'of ann'))).toEqual({ ...first, duplicate: true });
    // Another room knows nothing of it.
    expect((await bob.call('event.publish', message('other', 'm1'))).duplicate).toBe(false);
    expect(await storedEvents(databaseUrl, 'mine')).toEqual([{ seq: 1, mid: 'm1', data: 'of ann' }]);
  });

  test('[LOG4] an ack that was lost on the way is told by a retry elsewhere', async () => {
    const proxy = undo.add(await startProxy(a.port), (one) => one.close());
    const url = `http://127.0.0.1:${proxy.port}`;
    const ann = undo.add(await connect({ url, token: await userToken('ann') }), (one) => one.close());
    proxy.delay(400);
    const lost = ann.call('event.publish', message('lossy', 'm1'));
    lost.catch(() => undefined);
    await eventually('it is stored', async () => (await storedEvents(databaseUrl, 'lossy')).length === 1);
    proxy.cut();
    await expect(lost).rejects.toThrow();
    const elsewhere = await client(b, 'ann');
    const retried = await elsewhere.call('event.publish', message('lossy', 'm1'));
    expect(retried).toMatchObject({ position: { seq: 1 }, duplicate: true });
    expect(await storedEvents(databaseUrl, 'lossy')).toHaveLength(1);
  });
});
