import { afterAll, beforeAll, expect, test } from 'vitest';
import { Turns } from '../../src/realtime/turns.js';
import { makeTenant } from '../e2e/tenants-made.js';
import { connect } from '../support/client.js';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { freshDatabase } from '../support/postgres.js';
import { devToken } from '../support/tokens.js';

let gateway: GatewayProcess;
const database = await freshDatabase();
beforeAll(async () => {
  const rates = { TUTTI_COMMANDS_PER_SECOND: '10000', TUTTI_TENANT_PUBLISHES_PER_SECOND: '100000' };
  gateway = await startGateway({ env: { DATABASE_URL: database.url, ...rates } });
});
afterAll(async () => {
  await gateway?.stop();
  await database.drop();
});

const nextTurn = () => new Promise((resolve) => setImmediate(resolve));

test('work is done as it comes until the time of a turn is over; the rest waits in order, groups one after another', async () => {
  let now = 0;
  const turns = new Turns(1, () => now);
  const done: string[] = [];
  const add = (group: string, name: string, takes: number) =>
    turns.add(group, () => {
      done.push(name);
      now += takes;
    });
  add('loud', 'loud 0', 0.1);
  add('loud', 'loud 1', 0.2);
  add('quiet', 'quiet 0', 0.01);
  for (const n of [2, 3, 4]) add('loud', `loud ${n}`, 0.01);
  expect(done).toEqual(['loud 0', 'loud 1']);
  expect(turns.commands).toBe(4);
  await nextTurn();
  add('quiet', 'quiet 1', 0.01);
  while (turns.commands > 0) await nextTurn();
  expect(done.filter((name) => name.startsWith('loud'))).toEqual([0, 1, 2, 3, 4].map((n) => `loud ${n}`));
  expect(done.slice(2, 4)).toEqual(['quiet 0', 'loud 2']);
  await nextTurn();
  add('loud', 'again', 0);
  expect(done.at(-1)).toBe('again');
});

test('work that takes long lets the loop go on between two pieces', async () => {
  let now = 0;
  const turns = new Turns(1, () => now);
  let done = 0;
  const busy = () => {
    now += 5;
    done += 1;
  };
  for (let n = 0; n < 4; n += 1) turns.add('slow', busy);
  expect(done).toBe(1);
  for (let turn = 0; turn < 3; turn += 1) {
    const before = done;
    await nextTurn();
    expect(done - before).toBeLessThanOrEqual(1);
  }
  while (turns.commands > 0) await nextTurn();
  expect(done).toBe(4);
});

test('what a piece leaves to promises is part of it', async () => {
  let now = 0;
  const turns = new Turns(1, () => now);
  let done = 0;
  for (let n = 0; n < 4; n += 1) {
    void turns.passing('entering').then(() => {
      now += 5;
      done += 1;
    });
  }
  await Promise.resolve();
  for (let turn = 0; turn < 3; turn += 1) {
    const before = done;
    await nextTurn();
    expect(done - before).toBeLessThanOrEqual(1);
  }
  while (turns.connections > 0) await nextTurn();
});

test('[LIM1] connections have but a share of the time, and commands none of it to wait for', async () => {
  let now = 0;
  const turns = new Turns(0.25, () => now);
  const done: number[] = [];
  // Each takes 10 ms, of which 4 are given and 2.5 earned meanwhile: 14 ms later the next may come.
  for (let n = 0; n < 4; n += 1) {
    turns.pass('opening', () => {
      now += 10;
      done.push(now);
    });
  }
  const waits = async () => {
    for (let turn = 0; turn < 20; turn += 1) await nextTurn();
    await new Promise((resolve) => setTimeout(resolve, 60));
  };
  await waits();
  expect(done).toEqual([10]);
  let commands = 0;
  for (let n = 0; n < 100; n += 1) turns.add('tenant', () => (commands += 1));
  while (turns.commands > 0) await nextTurn();
  expect([commands, done.length]).toEqual([100, 1]);
  now += 13;
  await waits();
  expect(done.length).toBe(1);
  now += 2;
  await waits();
  expect(done.length).toBe(2);
  while (turns.connections > 0) {
    now += 40;
    await waits();
  }
  expect(done.length).toBe(4);
});

test('[LIM1] what uWebSockets.js does for connections by itself counts as their time', async () => {
  let now = 0;
  const turns = new Turns(0.5, () => now);
  let done = 0;
  for (let n = 0; n < 100; n += 1) {
    now += 0.1;
    turns.passed();
  }
  turns.pass('opening', () => (done += 1));
  for (let turn = 0; turn < 20; turn += 1) await nextTurn();
  expect(done).toBe(0);
  now += 20;
  await new Promise((resolve) => setTimeout(resolve, 60));
  expect(done).toBe(1);
});

test('of connections those that began are let in before others begin, and those that go do not wait for all who come', async () => {
  const turns = new Turns(1);
  const done: string[] = [];
  for (const passage of ['opening', 'opening', 'entering', 'entering', 'closing', 'closing'] as const) {
    turns.pass(passage, () => done.push(passage));
  }
  while (turns.connections > 0) await nextTurn();
  expect(done).toEqual(['entering', 'closing', 'entering', 'closing', 'opening', 'opening']);
});

test('[LIM1] a tenant that sends thousands at once is answered in order, and another tenant is not kept waiting for it', async () => {
  const loud = await makeTenant(gateway.env, gateway.url, 'loud');
  const flood = await Promise.all(
    [0, 1, 2, 3].map(async (n) => connect({ url: gateway.url, token: await loud.mint(`f${n}`) })),
  );
  const quiet = await connect({ url: gateway.url, token: await devToken() });
  await quiet.call('event.publish', { room: 'calm', type: 'note', data: 0 });
  const seqs: number[][] = flood.map(() => []);
  let answered = 0;
  const all = flood.flatMap((client, c) =>
    Array.from({ length: 900 }, async (_, n) => {
      const { position } = await client.call('event.publish', { room: `f${c}`, type: 'note', data: n });
      seqs[c]?.push(position.seq);
      answered += 1;
    }),
  );
  // Once the gateway has begun to answer, it has hundreds more to read.
  while (answered === 0) await nextTurn();
  await quiet.call('event.publish', { room: 'calm', type: 'note', data: 1 });
  const before = answered;
  await Promise.all(all);
  expect(before).toBeLessThan(3600 / 2);
  for (const room of seqs) expect(room).toEqual(Array.from({ length: 900 }, (_, at) => at + 1));
  for (const client of [...flood, quiet]) client.close();
});
