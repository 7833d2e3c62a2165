import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { runWorker } from '../../src/worker/index.js';
import { storedRun } from '../e2e/run-stage.js';
import { connect } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { DEV_WORKER_KEY, devToken } from '../support/tokens.js';
import { acmeToken, answersOf, Bounded, overloaded, refused } from './stage.js';

/*
 * What commands and requests hold in memory until they are answered. A lock in the database keeps them waiting.
 */

let on: Bounded;
beforeAll(async () => {
  on = await Bounded.start({
    TUTTI_IN_FLIGHT_PER_SESSION: '20',
    TUTTI_IN_FLIGHT_BYTES_PER_SESSION: String(200 * 1024),
    TUTTI_IN_FLIGHT_BYTES_PER_TENANT: String(400 * 1024),
    TUTTI_HTTP_MAX_REQUESTS: '5',
    TUTTI_WORKER_COMMANDS_PER_SECOND: '20',
    TUTTI_RUN_UNCOMMITTED_TOTAL_BYTES: String(32 * 1024),
    TUTTI_APPEND_TIMEOUT_MS: '20000',
  });
});
afterEach(() => on.undo.all());
afterAll(() => on?.stop());

const text = (kib: number) => 'x'.repeat(kib * 1024);

test('[LIM3] commands of one session that wait are bounded in number; another session goes on', async () => {
  const [ann, other] = await Promise.all([on.client(devToken()), on.client(devToken())]);
  const release = await on.stick('number');
  const asked = Array.from({ length: 30 }, (_, n) => ann.ask('event.publish', { room: 'number', type: 'a', data: n }));
  const answers = answersOf(asked);
  await eventually('the refusals', () => refused(answers).length >= 10);
  expect(refused(answers)).toHaveLength(10);
  expect(refused(answers)[0]).toEqual(overloaded(/20 of your commands wait/));
  expect(await on.reached('in_flight_session')).toBe(10);
  await other.call('event.history', { room: 'number' });
  await release();
  expect((await Promise.all(asked)).filter(({ ok }) => ok)).toHaveLength(20);
  await ann.call('event.publish', { room: 'number', type: 'a', data: 'after' });
  expect(await on.metric('tutti_in_flight_bytes')).toBe(0);
});

test('[LIM3] commands that wait are bounded in bytes, for a session and for its tenant', async () => {
  const [ann, ben, cas] = await Promise.all([1, 2, 3].map(() => on.client(devToken())));
  const bob = await on.client(acmeToken('bob'));
  if (!ann || !ben || !cas) throw new Error('three sessions');
  const release = await on.stick('bytes');
  const publish = (one: typeof ann) => one.ask('event.publish', { room: 'bytes', type: 'a', data: text(60) });
  const own = Array.from({ length: 5 }, () => publish(ann));
  const answers = answersOf(own);
  await eventually('the refusals', () => refused(answers).length >= 2);
  expect(refused(answers)).toEqual([overloaded(/204800 bytes of yours/), overloaded(/204800 bytes of yours/)]);
  const more = [publish(ben), publish(ben), publish(ben), publish(cas)];
  const others = answersOf(more);
  await eventually('the refusal', () => refused(others).length >= 1);
  expect(refused(others)).toEqual([overloaded(/409600 bytes of your tenant/)]);
  expect(await on.reached('in_flight_bytes_session')).toBe(2);
  expect(await on.reached('in_flight_bytes_tenant')).toBe(1);
  expect(await on.metric('tutti_in_flight_bytes')).toBeGreaterThan(360 * 1024);
  await bob.call('event.history', { room: 'bytes' });
  await release();
  expect((await Promise.all([...own, ...more])).filter(({ ok }) => ok)).toHaveLength(6);
  expect(await publish(cas)).toMatchObject({ ok: true });
});

test('[LIM3] HTTP requests being served are bounded; health is answered all the same', async () => {
  const [ann, bob] = await Promise.all([devToken(), acmeToken('bob')]);
  const release = await on.stick('requests');
  const publish = () => on.call(ann, 'POST', '/v1/rooms/requests/events', { type: 'a', data: 1 });
  const waiting = Array.from({ length: 5 }, publish);
  await eventually('five wait', async () => (await on.metric('tutti_http_in_flight')) >= 5);
  const sixth = await fetch(`${on.url}/v1/rooms`, { headers: { authorization: `Bearer ${bob}` } });
  expect([sixth.status, sixth.headers.get('retry-after')]).toEqual([503, '1']);
  expect(await sixth.json()).toMatchObject({ code: 'overloaded', retryable: true, retryAfterMs: 1000 });
  expect(await on.reached('http_requests')).toBe(1);
  expect((await fetch(`${on.url}/readyz`)).status).toBe(200);
  // Sockets are not requests.
  await (await on.client(bob)).call('event.history', { room: 'requests' });
  await release();
  expect((await Promise.all(waiting)).map(({ status }) => status)).toEqual([201, 201, 201, 201, 201]);
  expect((await publish()).status).toBe(201);
});

test('[LIM3] bodies of HTTP requests that wait count in bytes', async () => {
  const ann = await devToken();
  const release = await on.stick('bodies');
  const publish = () => on.call(ann, 'POST', '/v1/rooms/bodies/events', { type: 'a', data: text(60) });
  const waiting = [publish(), publish(), publish()];
  await eventually('three wait', async () => (await on.metric('tutti_in_flight_bytes')) > 180 * 1024);
  expect(await publish()).toMatchObject({ status: 503, body: { code: 'overloaded', retryAfterMs: 100 } });
  await release();
  expect((await Promise.all(waiting)).map(({ status }) => status)).toEqual([201, 201, 201]);
  expect((await publish()).status).toBe(201);
});

test('[LIM1] a worker that floods is rate limited on its own connection, and serves again after it', async () => {
  const worker = await connect({ url: on.url, namespace: '/worker', auth: { key: DEV_WORKER_KEY } });
  on.undo.add(worker, (one) => one.close());
  const beat = () => worker.ask('run.heartbeat', { run: 'unknown', fence: 1 });
  let limited: unknown;
  for (let tries = 0; tries < 60 && !limited; tries++) {
    const acks = await Promise.all(Array.from({ length: 15 }, beat));
    limited = refused(acks).find(({ code }) => code === 'rate_limited');
  }
  expect(limited).toEqual({
    code: 'rate_limited',
    message: expect.stringMatching(/commands of this session/),
    retryable: true,
    retryAfterMs: expect.any(Number),
  });
  const ann = await on.client(devToken());
  await ann.call('event.history', { room: 'flooded' });
  const { retryAfterMs = 0 } = limited as { retryAfterMs?: number };
  await new Promise((wait) => setTimeout(wait, retryAfterMs + 50));
  expect(refused([await beat()])).toMatchObject([{ code: 'not_found' }]);
});

test('[LIM1] uncommitted output of all runs has a limit: pushes are refused until the store takes it', async () => {
  const token = await devToken();
  const key = (method: 'GET' | 'POST', path: string, body?: unknown, headers?: Record<string, string>) =>
    on.call(DEV_WORKER_KEY, method, `/v1/worker${path}`, body, headers);
  const made = await on.call(token, 'POST', '/v1/rooms/output/runs', { model: 'big', input: 0 });
  expect(made.status).toBe(201);
  const claimed = await key('POST', '/claims', { models: ['big'], waitMs: 2000 });
  const { run, fence } = claimed.body as { run: { id: string }; fence: number };
  const worker = await connect({ url: on.url, namespace: '/worker', auth: { key: DEV_WORKER_KEY } });
  on.undo.add(worker, (one) => one.close());
  const push = (n: number) =>
    worker.ask('run.push', { run: run.id, fence, n, parts: [{ type: 'text-delta', id: 't', delta: text(10) }] });
  const release = await on.hold((tx) => tx`select 1 from tutti.runs where id = ${run.id} for update`);
  for (let n = 0; n < 4; n++) expect(await push(n)).toMatchObject({ ok: true });
  expect(refused([await push(4)])).toEqual([overloaded(/waits to be committed/)]);
  expect(await on.reached('run_uncommitted_total')).toBe(1);
  expect(await on.metric('tutti_runs_uncommitted_bytes')).toBeGreaterThan(32 * 1024);
  await release();
  await eventually('the store took it', async () => (await on.metric('tutti_runs_uncommitted_bytes')) === 0);
  expect(await push(4)).toMatchObject({ ok: true });
  expect(await worker.ask('run.finish', { run: run.id, fence, n: 5 })).toMatchObject({ ok: true });
  expect(await storedRun(on.url, token, run.id)).toMatchObject({ state: 'completed', length: 5 });
});

test('[LIM1] a handler of the worker SDK that pushes without waiting fails its run instead of filling the memory', async () => {
  const token = await devToken();
  const made = await on.call(token, 'POST', '/v1/rooms/overflow/runs', { model: 'overflow', input: 0 });
  const { run } = made.body as { run: { id: string } };
  const worker = runWorker({
    url: on.url,
    key: DEV_WORKER_KEY,
    models: ['overflow'],
    capacity: 1,
    async handle(_, { push, signal }) {
      for (let n = 0; n < 400; n++) void push({ type: 'text-delta', id: 't', delta: text(60) });
      await new Promise((stopped) => signal.addEventListener('abort', stopped, { once: true }));
    },
  });
  on.undo.add(worker, (one) => one.stop(0));
  const ended = await eventually('the end', async () => {
    const stored = await storedRun(on.url, token, run.id);
    return stored.state === 'failed' && stored;
  });
  expect(ended.error?.code).toBe('output_overflow');
});
