import { afterAll, beforeAll, expect, test } from 'vitest';
import { TokenBucket, TokenBuckets } from '../../src/core/limits.js';
import type { Principal } from '../../src/core/principal.js';
import { Rates } from '../../src/http/rates.js';
import { makeTenant } from '../e2e/tenants-made.js';
import { connect } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { freshDatabase } from '../support/postgres.js';
import { Session } from '../support/session.js';
import { recordMetrics } from '../support/telemetry.js';
import { DEV_SERVER_KEY, devToken } from '../support/tokens.js';
import { Wire } from '../support/wire.js';

let gateway: GatewayProcess;
const database = await freshDatabase();
beforeAll(async () => {
  gateway = await startGateway({
    env: { DATABASE_URL: database.url, TUTTI_TENANT_PUBLISHES_PER_SECOND: '40', TUTTI_CONNECT_TIMEOUT_MS: '1000' },
  });
});
afterAll(async () => {
  await gateway?.stop();
  await database.drop();
});

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const event = { room: 'lobby', type: 'note', data: 'x' };
const overHttp = () =>
  fetch(`${gateway.url}/v1/rooms/lobby/events`, {
    method: 'POST',
    headers: { authorization: `Bearer ${DEV_SERVER_KEY}`, 'content-type': 'application/json' },
    body: JSON.stringify({ type: 'note', data: 'x' }),
  });

test('[LIM1] a tenant that publishes past its rate is refused over sockets and HTTP, other tenants are not, and it is served again', async () => {
  const ann = await connect({ url: gateway.url, token: await devToken({ user: 'ann' }) });
  const other = await makeTenant(gateway.env, gateway.url, 'other');
  const bob = await connect({ url: gateway.url, token: await other.mint('bob') });
  const answers = await Promise.all(Array.from({ length: 30 }, () => ann.ask('event.publish', event)));
  const stored = answers.filter((answer) => answer.ok).length;
  expect(stored).toBeGreaterThanOrEqual(10);
  expect(stored).toBeLessThan(30);
  for (const answer of answers) {
    if (answer.ok) continue;
    expect(answer.error).toMatchObject({ code: 'rate_limited', retryable: true });
    expect(answer.error.retryAfterMs).toBeGreaterThanOrEqual(100);
  }
  const refused = await Promise.all(Array.from({ length: 30 }, overHttp));
  expect(refused.map(({ status }) => status)).toContain(429);
  await bob.call('event.publish', event);
  await eventually('the tenant is served again', async () => (await ann.ask('event.publish', event)).ok, 5000);
  const { head } = await bob.call('event.history', { room: 'lobby' });
  expect(head).toBe(1);
  ann.close();
  bob.close();
});

test('[LIM1] who was told to wait is refused unread until then, also what it was not told to wait with, and is not closed for it', async () => {
  const ann = await connect({ url: gateway.url, token: await devToken({ user: 'impatient' }) });
  await pause(500);
  const flood = await Promise.all(Array.from({ length: 30 }, () => ann.ask('event.publish', event)));
  expect(flood.some((answer) => !answer.ok)).toBe(true);
  expect(await ann.ask('event.history', { room: 'lobby' })).toMatchObject({
    ok: false,
    error: { code: 'rate_limited' },
  });
  await pause(300);
  expect(await ann.ask('event.history', { room: 'lobby' })).toMatchObject({ ok: true });
  expect(ann.disconnects).toEqual([]);
  const metrics = await (await fetch(`${gateway.url}/metrics`)).text();
  expect(Number(/^tutti_rate_limited_total\{[^}]*scope="standing"[^}]*\} (\S+)$/m.exec(metrics)?.[1])).toBeGreaterThan(
    0,
  );
  ann.close();
});

test('[LIM1] what a tenant past its rate publishes is refused before it is read, also by a session that was not refused yet', async () => {
  const { url } = gateway;
  const ann = await connect({ url, token: await devToken({ user: 'ann' }) });
  const ben = await connect({ url, token: await devToken({ user: 'ben' }) });
  await pause(500);
  await Promise.all(Array.from({ length: 30 }, () => ann.ask('event.publish', event)));
  const bad = { room: 'no room', type: 'note', data: 'x' };
  const answers = await Promise.all([
    ben.ask('event.history', { room: 'lobby' }),
    ...Array.from({ length: 12 }, () => ben.ask('event.publish', bad)),
  ]);
  expect(answers[0]).toMatchObject({ ok: true });
  expect(answers.at(-1)).toMatchObject({ ok: false, error: { code: 'rate_limited', retryable: true } });
  // In time it is read.
  await pause(500);
  expect(await ben.ask('event.publish', bad)).toMatchObject({ ok: false, error: { code: 'bad_request' } });
  ann.close();
  ben.close();
});

test('[LIM1] commands of sockets that are gone before their turn leave nothing behind', async () => {
  const { port, url } = gateway;
  for (let round = 0; round < 12; round += 1) {
    const sessions = await Promise.all(
      Array.from({ length: 8 }, async (_, n) =>
        Session.open({ port, auth: { token: await devToken({ user: `gone-${n}` }) } }),
      ),
    );
    for (const session of sessions) {
      session.wire.send(
        ...Array.from({ length: 4 }, () => session.command('event.publish', event)),
        ...Array.from({ length: 150 }, () => session.command('event.history', { room: 'lobby', limit: 1 })),
      );
    }
    await new Promise((resolve) => setImmediate(resolve));
    for (const session of sessions) session.close();
  }
  const inFlight = async () =>
    Number(/^tutti_in_flight_bytes(?:\{[^}]*\})? (\S+)$/m.exec(await (await fetch(`${url}/metrics`)).text())?.[1]);
  await eventually('nothing is in flight', async () => (await inFlight()) === 0, 20_000);
  const ann = await connect({ url, token: await devToken({ user: 'ann' }) });
  await eventually('the tenant publishes', async () => (await ann.ask('event.publish', event)).ok, 5000);
  ann.close();
});

test('[LIM1] who waits on a slow gateway is not taken for a flood: those ahead count only while tokens run short', () => {
  let now = 0;
  const bucket = new TokenBucket(1000, 250, () => now);
  expect(bucket.expect(2000)).toBe(0);
  for (let n = 0; n < 250; n += 1) expect(bucket.take()).toBe(0);
  expect(bucket.take()).toBeGreaterThan(0);
  now += 10;
  expect([bucket.expect(5), bucket.expect(9)]).toEqual([0, 0]);
  expect(bucket.expect(20)).toBeGreaterThan(0);
  now += 1000;
  expect(bucket.expect(2000)).toBe(0);
});

test('[LIM1] a socket that talks and talks without being let in is closed, and the gateway goes on', async () => {
  const wire = await Wire.open(gateway.port, '/socket.io/?EIO=4&transport=websocket');
  const closed = new Promise<void>((resolve) => {
    wire.onClose = resolve;
  });
  for (let n = 0; n < 20; n += 1) wire.send(`40${JSON.stringify({ token: 'x'.repeat(20_000) })}`);
  await closed;
  const ann = await connect({ url: gateway.url, token: await devToken({ user: 'ann' }) });
  ann.close();
});

test('[LIM1] buckets of rates are kept for 10,000, the least recently used goes first, and each that goes is counted', () => {
  const metrics = recordMetrics();
  const gone = () => metrics.total('limit_reached', { limit: 'rate_buckets' });
  const buckets = new TokenBuckets(0.001, 1, metrics);
  const take = (n: number) => buckets.take(`key ${n}`) === 0;
  for (let n = 0; n < 10_000; n++) expect(take(n)).toBe(true);
  expect([take(0), take(1), gone()]).toEqual([false, false, 0]);
  expect([take(10_000), gone()]).toEqual([true, 1]);
  // Not the oldest but the one that was used before all others.
  expect([take(0), take(1), take(3)]).toEqual([false, false, false]);
  expect([take(2), gone()]).toEqual([true, 2]);
});

test('[LIM1] requests over HTTP of more than 10,000 users: their buckets are bounded too', () => {
  const metrics = recordMetrics();
  const rates = new Rates({ commandsPerSecond: 1, tenantCommandsPerSecond: 1_000_000 }, metrics);
  const user = (n: number): Principal => ({ kind: 'user', id: `u${n}`, tenant: 'acme', capabilities: {} });
  for (let n = 0; n < 10_500; n++) rates.check(user(n));
  expect(metrics.total('limit_reached', { limit: 'rate_buckets' })).toBe(500);
});
