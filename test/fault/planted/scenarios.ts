import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import postgres from 'postgres';
import type { Part } from '../../../src/protocol/parts.js';
import type { Assignment } from '../../../src/protocol/worker.js';
import { call } from '../../e2e/run-stage.js';
import { HttpWorker } from '../../e2e/run-workers.js';
import { connect } from '../../support/client.js';
import { eventually } from '../../support/eventually.js';
import { freshDatabase, startPostgres } from '../../support/postgres.js';
import { startRedis } from '../../support/redis.js';
import type { Verdict } from '../checker/check.js';
import { monotonic } from '../history.js';
import { type LoadTenant, mint } from '../load/config.js';
import type { Load } from '../load/load.js';
import { OutputDigest } from '../output-digest.js';
import { type Planting, type Stage, staged } from './stage.js';

const more = (load: Load, events: number): Promise<true> => {
  const before = load.status().acked;
  return eventually('publishing goes on', () => load.status().acked >= before + events || undefined, 25_000);
};

/**
 * Publishers, retries, readers; Postgres is killed and recovers, then the gateway is killed and started again. Postgres is set
 * up to lose whatever it was not told to keep.
 */
export const crashes = (planting: Planting = {}): Promise<Verdict> =>
  staged(planting, async (stage) => {
    const settings = { synchronous_commit: 'off', wal_writer_delay: '10000ms' };
    const database = stage.undo.add(await startPostgres({ settings }), (one) => one.destroy());
    const tenants = await stage.tenants(database.url, 1);
    const env = { DATABASE_URL: database.url };
    const gateway = await stage.gateway(env);
    await inDatabase(database.url, 'checkpoint');

    const gateways = [{ name: 'g1', url: gateway.url }];
    const clients = { publishers: 4, readers: 4, streamReaders: 1, ratePerSecond: 150 };
    const load = await stage.load({ name: 'a', gateways, tenants, ...clients });
    await more(load, 60);
    for (const tenant of tenants) await twice(stage, gateway.url, tenant);
    await stage.fault(
      'postgres-kill',
      'postgres',
      () => database.kill9(),
      () => database.start(),
    );
    await more(load, 60);
    await stage.fault(
      'gateway-kill',
      'g1',
      () => gateway.kill9(),
      () => stage.gateway(env, gateway.port),
    );
    await more(load, 30);
    return stage.verdict(database.url);
  });

/** Sends each event, and then again under the same mid, as a client does that did not get the answer. */
async function twice(stage: Stage, url: string, tenant: LoadTenant): Promise<void> {
  const client = await connect({ url, token: await mint(tenant, 'twice') });
  const room = 'lobby';
  for (let n = 0; n < 20; n++) {
    const mid = `twice-${tenant.id}-${Math.floor(n / 2)}`;
    stage.write(['send', monotonic(), 'twice', tenant.id, room, mid, 'twice/1']);
    const { position, duplicate } = await client.call('event.publish', { room, type: 'twice', data: n, mid });
    stage.write(['ack', monotonic(), 'twice', mid, position.epoch, position.seq, duplicate]);
  }
  client.close();
}

/**
 * Two tenants with rooms of one name on two gateways; readers join from the start while events flow, connections are cut, Redis
 * is killed and started again.
 */
export const joins = (planting: Planting = {}): Promise<Verdict> =>
  staged(planting, async (stage) => {
    const database = stage.undo.add(await freshDatabase(), (one) => one.drop());
    const redis = stage.undo.add(await startRedis(), (one) => one.stop());
    const tenants = await stage.tenants(database.url, 2);
    const env = {
      DATABASE_URL: database.url,
      REDIS_URL: redis.url,
      TUTTI_REDIS_PREFIX: `planted-${randomBytes(4).toString('hex')}:`,
      TUTTI_RING_BYTES_PER_ROOM: '16384', // what is older comes from the log
    };
    const [a, b] = await Promise.all([stage.gateway(env), stage.gateway(env)]);
    const gateways = [
      { name: 'a', url: a.url },
      { name: 'b', url: b.url },
    ];
    const clients = { publishers: 6, readers: 8, streamReaders: 2, ratePerSecond: 300 };
    const load = await stage.load({ name: 'a', gateways, tenants, ...clients });
    await more(load, 300);
    for (const tenant of tenants) await broadcast(a.url, tenant);
    await stage.load({ name: 'b', gateways, tenants, readers: 6 });
    await more(load, 100);
    load.faults.cut(8);
    await more(load, 100);
    await stage.fault(
      'redis-kill',
      'redis',
      async () => {
        await redis.kill9();
        await more(load, 60);
      },
      () => redis.start(),
    );
    await more(load, 100);
    return stage.verdict(database.url);
  });

async function broadcast(url: string, tenant: LoadTenant): Promise<void> {
  const client = await connect({ url, token: await mint(tenant, 'speaker') });
  for (let n = 0; n < 5; n++) {
    await client.call('broadcast.send', { room: 'lobby', type: 'hello', data: { c: tenant.canary } });
  }
  client.close();
}

const LEASE_MS = 2000;
const VIEWERS = 3;

/** A worker falls silent in the middle of a run, another takes it over, and the first one writes on. */
export const zombies = (planting: Planting = {}): Promise<Verdict> =>
  staged(planting, async (stage) => {
    const database = stage.undo.add(await freshDatabase(), (one) => one.drop());
    const tenants = await stage.tenants(database.url, 1);
    const [tenant] = tenants;
    if (!tenant) throw new Error('no tenant');
    const gateway = await stage.gateway({ DATABASE_URL: database.url, TUTTI_RUN_LEASE_MS: String(LEASE_MS) });
    const gateways = [{ name: 'g1', url: gateway.url }];
    const load = await stage.load({ name: 'a', gateways, tenants, viewers: VIEWERS });
    await eventually('viewers join', () => load.status().joined === VIEWERS);

    const client = await connect({ url: gateway.url, token: await mint(tenant, 'asker') });
    const { run } = await client.call('run.create', { room: 'lobby', model: 'score', input: {} });
    client.close();
    stage.write(['ask', monotonic(), run.id, tenant.id, 'lobby']);
    const first = await takeRun(stage, gateway.url, tenant, 'first');
    await first.push(0, 2);
    const second = await takeRun(stage, gateway.url, tenant, 'second');
    await second.push(0, 2);
    const sentAt = monotonic();
    if ((await first.push(2, 4)) === 200) stage.write(['wrote', sentAt, 'first', run.id, first.assignment.fence]);
    await second.push(2, 6);
    await second.worker.post(second.assignment, 'finish');
    await eventually('viewers see it made and ended', () => load.status().received === 2 * VIEWERS);
    return stage.verdict(database.url);
  });

/** A worker over HTTP that says its own name in every part, and writes down what it made before it sends it. */
async function takeRun(stage: Stage, url: string, tenant: LoadTenant, name: string) {
  const worker = new HttpWorker(url, tenant.workerKey);
  const assignment: Assignment | undefined = await worker.claim(15_000);
  if (!assignment) throw new Error(`${name} got no run`);
  const { run, attempt, fence } = assignment;
  stage.write(['claim', monotonic(), name, run.id, attempt, fence]);
  const parts: Part[] = [{ type: 'text-start', id: 't' }];
  for (let n = 1; n < 6; n++) parts.push({ type: 'text-delta', id: 't', delta: `${name} ${n} ` });
  const output = new OutputDigest();
  return {
    worker,
    assignment,
    /** @returns the status of the answer. */
    async push(from: number, to: number): Promise<number> {
      const sent = parts.slice(from, to);
      const digests = sent.map((part) => output.add(part).toString());
      stage.write(['work', monotonic(), name, run.id, attempt, from, digests]);
      const body = worker.open(assignment);
      for (const [i, part] of sent.entries()) body.send(from + i, part);
      return (await body.end()).status;
    },
  };
}

/** The room that is erased and used again. */
const ATTIC = 'attic';

/**
 * No fault at all: publishers that do not wait for their answers, readers that come back, a room that is erased and used
 * again. What is sent, answered and read in it is as it is on most days.
 */
export const ordinary = (planting: Planting = {}): Promise<Verdict> =>
  staged(planting, async (stage) => {
    const database = stage.undo.add(await freshDatabase(), (one) => one.drop());
    const tenants = (await stage.tenants(database.url, 1)).map((one) => ({ ...one, rooms: ['lobby', ATTIC] }));
    const gateway = await stage.gateway({ DATABASE_URL: database.url });
    const gateways = [{ name: 'g1', url: gateway.url }];
    const clients = { publishers: 2, httpPublishers: 2, readers: 4, streamReaders: 2, ratePerSecond: 300 };
    const load = await stage.load({ name: 'a', gateways, tenants, ...clients });
    const joined = () =>
      eventually('readers join', () => load.status().joined === clients.readers + clients.streamReaders);
    await joined();
    await more(load, 120);
    const until = performance.now() + (planting.lastsMs ?? 0);
    load.faults.cut(8);
    await more(load, 120);
    await joined();
    for (const { serverKey } of tenants) await call(gateway.url, serverKey, 'DELETE', `/v1/rooms/${ATTIC}`);
    await more(load, 120);
    await sleep(Math.max(0, until - performance.now()));
    return stage.verdict(database.url, { mayMove: (_, room) => room === ATTIC });
  });

async function inDatabase(url: string, statement: string): Promise<void> {
  const sql = postgres(url, { max: 1, onnotice: () => undefined });
  await sql.unsafe(statement);
  await sql.end({ timeout: 1 });
}
