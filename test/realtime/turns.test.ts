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
  const turns = new Turns(() => now);
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
  expect([turns.waiting('loud'), turns.waiting('quiet'), turns.size]).toEqual([3, 1, 4]);
  await nextTurn();
  add('quiet', 'quiet 1', 0.01);
  while (turns.size > 0) await nextTurn();
  expect(done.filter((name) => name.startsWith('loud'))).toEqual([0, 1, 2, 3, 4].map((n) => `loud ${n}`));
  expect(done.slice(2, 4)).toEqual(['quiet 0', 'loud 2']);
  await nextTurn();
  add('loud', 'again', 0);
  expect(done.at(-1)).toBe('again');
});

test('work that takes long lets the loop go on between two pieces', async () => {
  let now = 0;
  const turns = new Turns(() => now);
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
  while (turns.size > 0) await nextTurn();
  expect(done).toBe(4);
});

test('what a piece leaves to promises is part of it', async () => {
  let now = 0;
  const turns = new Turns(() => now);
  let done = 0;
  for (let n = 0; n < 4; n += 1) {
    void turns.next('slow').then(() => {
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
  while (turns.size > 0) await nextTurn();
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
