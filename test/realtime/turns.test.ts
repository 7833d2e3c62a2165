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

const settled = async () => {
  for (let turn = 0; turn < 20; turn += 1) await nextTurn();
  await new Promise((resolve) => setTimeout(resolve, 60));
};

test('[LIM1] connections have but a share of the time, and commands none of it to wait for', async () => {
  let now = 0;
  const turns = new Turns(0.25, () => now);
  let done = 0;
  // Each takes a quarter of a millisecond and earns a quarter of that; 4 ms are given at first.
  for (let n = 0; n < 40; n += 1) {
    turns.pass('opening', () => {
      now += 0.25;
      done += 1;
    });
  }
  await settled();
  const atOnce = done;
  expect(atOnce).toBeGreaterThan(15);
  expect(atOnce).toBeLessThan(25);
  let commands = 0;
  for (let n = 0; n < 100; n += 1) turns.add('tenant', () => (commands += 1));
  while (turns.commands > 0) await nextTurn();
  expect([commands, done]).toEqual([100, atOnce]);
  now += 4;
  await settled();
  expect(done - atOnce).toBeGreaterThan(2);
  expect(done - atOnce).toBeLessThan(8);
  while (turns.connections > 0) {
    now += 4;
    await settled();
  }
  expect(done).toBe(40);
});

test('[LIM1] what uWebSockets.js does for connections by itself counts as their time, but some go on whatever comes', async () => {
  let now = 0;
  const turns = new Turns(0.01, () => now);
  let done = 0;
  const come = () => turns.pass('opening', () => (done += 1));
  const others = (ms: number) => {
    for (const until = now + ms; now < until; now += 0.1) turns.passed();
  };
  come();
  await settled();
  expect(done).toBe(1);
  for (let n = 0; n < 10; n += 1) come();
  others(4.5);
  await settled();
  // Those were waiting while the others came: what was given was used up by them, or by both.
  const before = done;
  others(100);
  for (let n = 0; n < 10; n += 1) come();
  await settled();
  expect(done - before).toBeLessThanOrEqual(1);
  for (let round = 1; round <= 5; round += 1) {
    others(5);
    await settled();
    expect(done - before).toBeGreaterThanOrEqual(round);
    expect(done - before).toBeLessThanOrEqual(round + 2);
  }
});

test('a connection that is gone before its turn takes none', async () => {
  const turns = new Turns(1);
  const done: number[] = [];
  for (let n = 0; n < 100; n += 1) {
    turns.pass(
      'opening',
      () => done.push(n),
      () => n < 99,
    );
  }
  await nextTurn();
  await nextTurn();
  expect([done, turns.connections]).toEqual([[99], 0]);
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
