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
  gateway = await startGateway({ env: { DATABASE_URL: database.url, TUTTI_COMMANDS_PER_SECOND: '10000' } });
});
afterAll(async () => {
  await gateway?.stop();
  await database.drop();
});

const nextTurn = () => new Promise((resolve) => setImmediate(resolve));

test('a group gets its share at once, the rest in order, and groups that wait go one after another', async () => {
  const turns = new Turns();
  const done: string[] = [];
  for (let n = 0; n < 5; n += 1) turns.add('loud', () => done.push(`loud ${n}`), 2);
  turns.add('quiet', () => done.push('quiet 0'), 2);
  expect(done).toEqual(['loud 0', 'loud 1', 'quiet 0']);
  expect([turns.waiting('loud'), turns.size]).toEqual([3, 3]);
  turns.add('quiet', () => done.push('quiet 1'));
  turns.add('quiet', () => done.push('quiet 2'), 2);
  while (turns.size > 0) await nextTurn();
  expect(done.slice(3)).toEqual(['loud 2', 'quiet 1', 'loud 3', 'quiet 2', 'loud 4']);
  await nextTurn();
  turns.add('loud', () => done.push('again'), 1);
  expect(done.at(-1)).toBe('again');
});

test('work that takes long lets the loop go on between two pieces', async () => {
  const turns = new Turns();
  let done = 0;
  const busy = () => {
    for (const until = performance.now() + 5; performance.now() < until; );
    done += 1;
  };
  for (let n = 0; n < 3; n += 1) turns.add('slow', busy);
  await nextTurn();
  expect(done).toBeLessThan(3);
  while (turns.size > 0) await nextTurn();
  expect(done).toBe(3);
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
