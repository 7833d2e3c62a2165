import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { uuidv7 } from '../../src/core/run-id.js';
import type { EndRun, RunStore, Segment } from '../../src/core/run-store.js';
import type { Part } from '../../src/protocol/parts.js';
import { type JsonText, toJsonText } from '../../src/protocol/primitives.js';
import { RunTable } from '../core/run-table.js';
import { SimRooms } from '../core/sim-log.js';
import { delta, input, room, sleep, stage } from './stage.js';

let on: Awaited<ReturnType<typeof stage>>;
beforeAll(async () => {
  on = await stage();
});
afterAll(() => on.end());

/** The model that the simulation of runs works on (test/core/run-table.ts). */
const model = new RunTable(new SimRooms(Date.now), Date.now).store(async (work) => work());
let store: RunStore;

const alice = { kind: 'user', id: 'alice' } as const;
const limits = { livePerTenant: 100, livePerRoom: 100, maxAttempts: 2, queueTtlMs: 60_000 };
let models = 0;
const nextModel = () => `m${++models}`;
const create = (given: Partial<Parameters<RunStore['create']>[0]> = {}, other = limits) =>
  store.create(
    { id: uuidv7(), tenant: 'acme', room: 'lobby', model: 'm', input, initiator: alice, mid: undefined, ...given },
    other,
  );
const claim = (of: string, tenant: string | null = 'acme', leaseMs = 10_000) =>
  store.claim({ tenant, models: [of], worker: 'w', leaseMs, durationMaxMs: 60_000 });
const claimed = async (of: string) => {
  const found = await claim(of);
  if (!found) throw new Error('nothing to claim');
  return found.run;
};
const segment = (run: { id: string; attempt: number; fence: number }, n: number, parts: Part[]): Segment => ({
  tenant: 'acme',
  run: run.id,
  attempt: run.attempt,
  fence: run.fence,
  n,
  count: parts.length,
  parts: toJsonText(parts),
});
const ending = (run: { id: string; fence: number }, given: Partial<EndRun> = {}): EndRun => ({
  tenant: 'acme',
  run: run.id,
  fence: run.fence,
  state: 'completed',
  last: undefined,
  usage: undefined,
  error: undefined,
  meta: undefined,
  by: { kind: 'worker', id: 'w' },
  ...given,
});

test('the application works with the lesser role from its first statement on', async () => {
  const [row] = await on.database.withTenants(['acme'], (tx) => tx<{ user: string }[]>`select current_user as user`);
  expect(row?.user).toBe('tutti_app');
});

describe.each(['Postgres', 'the model'])('runs in %s', (where) => {
  beforeAll(() => {
    store = where === 'Postgres' ? on.store : model;
  });

  test('a run and its event are made together, once for each mid', async () => {
    const of = nextModel();
    const first = await create({ model: of, mid: 'one' });
    expect(first.event).toMatchObject({ type: 'run.created', mid: `run:${first.run.id}:created`, room: 'lobby' });
    expect(JSON.parse(first.event?.data ?? '')).toMatchObject({ run: { id: first.run.id }, input: { prompt: 'hi' } });
    const again = await create({ model: of, mid: 'one' });
    expect(again.run.id).toBe(first.run.id);
    expect(again.event).toBeUndefined();
    await expect(create({ mid: 'one', initiator: { kind: 'user', id: 'bob' } })).rejects.toMatchObject({
      code: 'conflict',
    });
    expect((await store.live([room])).map((run) => run.id)).toContain(first.run.id);
    expect(await store.get('beta', first.run.id)).toBeUndefined();
  });

  test('a tenant has a limited number of live runs, also when it asks all at once', async () => {
    const asked = Array.from({ length: 12 }, () =>
      create({ tenant: 'beta', model: nextModel() }, { ...limits, livePerTenant: 5 }),
    );
    const made = await Promise.allSettled(asked);
    expect(made.filter((one) => one.status === 'fulfilled')).toHaveLength(5);
    expect(made.find((one) => one.status === 'rejected')).toMatchObject({ reason: { code: 'quota_exceeded' } });
  });

  test('each run is claimed once, however many claim at the same time', async () => {
    const of = nextModel();
    const ids = [];
    for (let i = 0; i < 10; i++) ids.push((await create({ model: of })).run.id);
    const found = await Promise.all(Array.from({ length: 15 }, () => claim(of, null)));
    expect(found.flatMap((one) => (one ? [one.run.id] : [])).sort()).toEqual(ids.sort());
  });

  test('tenants take turns at a worker of the operator', async () => {
    const of = nextModel();
    for (let i = 0; i < 6; i++) await create({ model: of });
    for (let i = 0; i < 2; i++) await create({ model: of, tenant: 'beta' });
    const order = [];
    for (let i = 0; i < 6; i++) order.push((await claim(of, null))?.run.tenant);
    expect(order.slice(0, 4).filter((tenant) => tenant === 'beta')).toHaveLength(2);
    expect(order.slice(4)).toEqual(['acme', 'acme']);
  });

  test('[RUN1] segments that overlap are stored once, a gap is never stored', async () => {
    const of = nextModel();
    await create({ model: of });
    const run = await claimed(of);
    const parts = Array.from({ length: 6 }, (_, i) => delta(`${i}\u0000\\"é`));
    const commit = async (n: number, end: number) =>
      (await store.commit([segment(run, n, parts.slice(n, end))], 5000))[0];
    expect(await commit(0, 2)).toEqual({ status: 'committed', committed: 2, cancelled: false });
    expect(await commit(3, 4)).toEqual({ status: 'committed', committed: 2, cancelled: false });
    expect(await commit(1, 4)).toEqual({ status: 'committed', committed: 4, cancelled: false });
    expect(await commit(0, 3)).toEqual({ status: 'committed', committed: 4, cancelled: false });
    const last = segment(run, 2, parts.slice(2));
    const { run: ended, event } = await store.end(
      ending(run, { last, usage: { outputTokens: 3 }, meta: '{"a":1}' as JsonText }),
    );
    expect(ended).toMatchObject({ state: 'completed', length: 6, usage: { outputTokens: 3 } });
    expect(JSON.parse(event?.data ?? '')).toMatchObject({
      run: { length: 6 },
      message: { role: 'assistant', parts: [delta(parts.map((_, i) => `${i}\u0000\\"é`).join(''))] },
      meta: { a: 1 },
    });
    const stored = await store.segments('acme', run.id, 1, 3, 1_000_000);
    expect(stored.flatMap(({ n, parts: text }) => (JSON.parse(text) as Part[]).slice(Math.max(0, 3 - n)))).toEqual(
      parts.slice(3),
    );
    const again = await store.end(ending(run));
    expect(again.event).toBeUndefined();
    expect(again.run.state).toBe('completed');
    expect(await store.commit([segment(run, 6, [delta('x')])], 5000)).toEqual([
      { status: 'ended', state: 'completed', committed: 6 },
    ]);
  });

  test('[RUN2] an old fence cannot write, and a lost lease is retried until attempts are used up', async () => {
    const of = nextModel();
    await create({ model: of });
    const first = (await claim(of, 'acme', 30))?.run;
    if (!first) throw new Error('nothing to claim');
    await store.commit([segment(first, 0, [delta('a')])], 30);
    await sleep(60);
    const [retried] = (await store.sweep(100, 60_000)).filter(({ run }) => run.id === first.id);
    expect(retried?.run).toMatchObject({ state: 'queued', attempt: 2, committed: 0 });
    expect(await store.commit([segment(first, 1, [delta('b')])], 30)).toEqual([{ status: 'fenced' }]);
    await expect(store.end(ending(first))).rejects.toMatchObject({ code: 'fenced' });
    const second = (await claim(of, 'acme', 30))?.run;
    if (!second) throw new Error('nothing to claim');
    expect(second.fence).toBeGreaterThan(first.fence);
    const results = await store.commit([segment(first, 1, [delta('b')]), segment(second, 0, [delta('c')])], 30);
    expect(results.map(({ status }) => status)).toEqual(['fenced', 'committed']);
    await sleep(60);
    const [failed] = (await store.sweep(100, 60_000)).filter(({ run }) => run.id === first.id);
    expect(failed?.run).toMatchObject({
      state: 'failed',
      length: 1,
      error: { code: 'worker_lost' },
      output: [delta('c')],
    });
    expect(failed?.event).toMatchObject({ type: 'run.failed', mid: `run:${first.id}:end` });
  });

  test('a run that nobody takes expires', async () => {
    const { run } = await create({ model: nextModel() }, { ...limits, queueTtlMs: 20 });
    await sleep(50);
    const [expired] = (await store.sweep(100, 60_000)).filter((change) => change.run.id === run.id);
    expect(expired?.run).toMatchObject({ state: 'expired', error: { code: 'expired' } });
    expect(expired?.event?.type).toBe('run.failed');
  });

  test('a run that is given back waits with its attempt, under another fence', async () => {
    const of = nextModel();
    await create({ model: of });
    const run = await claimed(of);
    const { run: back } = await store.release({ tenant: 'acme', run: run.id, fence: run.fence, queueTtlMs: 1000 });
    expect(back).toMatchObject({ state: 'queued', attempt: 1 });
    expect(await store.heartbeat([{ tenant: 'acme', run: run.id, fence: run.fence }], 1000)).toEqual([
      { status: 'fenced' },
    ]);
    expect((await claimed(of)).id).toBe(run.id);
  });

  test('[RUN3] of a cancel and a finish at the same time one wins, with one event', async () => {
    for (let i = 0; i < 5; i++) {
      const of = nextModel();
      await create({ model: of });
      const run = await claimed(of);
      const both = await Promise.all([
        store.end(ending(run)),
        store.end(ending(run, { fence: null, state: 'cancelled', by: alice })),
      ]);
      expect(both.filter(({ event }) => event)).toHaveLength(1);
      expect(both[0].run.state).toBe(both[1].run.state);
    }
  });
});
