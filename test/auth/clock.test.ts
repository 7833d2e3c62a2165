import { resolve } from 'node:path';
import { afterAll, expect, test, vi } from 'vitest';
import type { Clock } from '../../src/core/clock.js';
import { Revocations } from '../../src/core/revocations.js';
import { VirtualClock } from '../core/virtual-clock.js';
import { connect } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { freshDatabase } from '../support/postgres.js';
import { DEV_SERVER_KEY, devToken } from '../support/tokens.js';
import { MemoryDirectory } from './memory-directory.js';
import { setUp } from './setup.js';

const SHIFT = resolve(import.meta.dirname, '../fault/faults/clock-shift.mjs');
const database = await freshDatabase();
const started: GatewayProcess[] = [];
afterAll(async () => {
  await Promise.all(started.map((gateway) => gateway.stop()));
  await database.drop();
});

/** A gateway whose wall clock is off; all of them share one database. */
async function gatewayOff(shiftMs: number): Promise<GatewayProcess> {
  const shift = { NODE_OPTIONS: `--import ${SHIFT}`, TORTURE_CLOCK_SHIFT_MS: String(shiftMs) };
  const gateway = await startGateway({ env: { DATABASE_URL: database.url, ...(shiftMs === 0 ? {} : shift) } });
  started.push(gateway);
  return gateway;
}

const now = () => Math.floor(Date.now() / 1000);
const minute = () => devToken({ claims: { iat: now(), exp: now() + 60 } });

test('[ERR1] a clock 5 minutes behind: a fresh token is refused for now and not for good, and the gateway says why', async () => {
  const behind = await gatewayOff(-300_000);
  const refusal = connect({ url: behind.url, token: await minute() });
  await expect(refusal).rejects.toMatchObject({ error: { code: 'log_unavailable', retryable: true } });
  const metrics = await (await fetch(`${behind.url}/metrics`)).text();
  const offset = Number(/^tutti_clock_offset_seconds (\S+)$/m.exec(metrics)?.[1]);
  expect(offset).toBeGreaterThan(290);
  expect(offset).toBeLessThan(310);
  expect(behind.logs()).toContain('The clock of this machine and that of the database differ');
  const known = await connect({ url: behind.url, token: await devToken({ claims: { iat: now() - 600 } }) });
  known.close();
});

test('[ERR1] a clock 5 minutes ahead: what it mints is good elsewhere, what is short-lived is refused for now', async () => {
  const ahead = await gatewayOff(300_000);
  const right = await gatewayOff(0);
  const refusal = connect({ url: ahead.url, token: await minute() });
  await expect(refusal).rejects.toMatchObject({ error: { code: 'log_unavailable', retryable: true } });
  const answer = await fetch(`${ahead.url}/v1/tokens`, {
    method: 'POST',
    headers: { authorization: `Bearer ${DEV_SERVER_KEY}`, 'content-type': 'application/json' },
    body: JSON.stringify({ user: 'ann', cap: { '*': ['join'] }, ttlSeconds: 900 }),
  });
  const { token } = (await answer.json()) as { token: string };
  const client = await connect({ url: right.url, token });
  client.close();
});

test('[LIM1] a clock put back 5 minutes while sessions are open: a refusal lasts as long as it said, and nobody is closed', async () => {
  const env = { NODE_OPTIONS: `--import ${SHIFT}`, TORTURE_CLOCK_STEP_MS: '-300000', TUTTI_COMMANDS_PER_SECOND: '10' };
  const gateway = await startGateway({ env: { ...env, DATABASE_URL: database.url } });
  started.push(gateway);
  const client = await connect({ url: gateway.url, token: await devToken({ claims: { iat: now() - 600 } }) });
  const flood = () => Promise.all(Array.from({ length: 30 }, () => client.ask('event.history', { room: 'clock' })));
  const waits = (await flood()).flatMap((answer) => (answer.ok ? [] : (answer.error.retryAfterMs ?? Number.NaN)));
  expect(waits.length).toBeGreaterThan(0);
  gateway.signal('SIGUSR2');
  await eventually('the clock is back', async () => {
    const probe = await connect({ url: gateway.url, token: await devToken({ claims: { iat: now() - 600 } }) });
    const { serverTime } = await probe.waitFor('session.ready');
    probe.close();
    return serverTime < Date.now() - 200_000;
  });
  await new Promise((resolve) => setTimeout(resolve, Math.max(...waits) + 500));
  expect(await client.ask('event.history', { room: 'clock' })).toMatchObject({ ok: true });
  expect(client.disconnects).toEqual([]);
  client.close();
});

test('[AUTH3] a clock put forward 5 minutes: what is known of revocations is no older for it', async () => {
  // Read once in this test: what is known would be too old after 185 s.
  const env = { TORTURE_CLOCK_STEP_MS: '300000', TUTTI_REVOCATION_POLL_MS: '60000', NODE_OPTIONS: `--import ${SHIFT}` };
  const gateway = await startGateway({ env: { ...env, DATABASE_URL: database.url } });
  started.push(gateway);
  gateway.signal('SIGUSR2');
  const late = await eventually('the clock is ahead', async () => {
    const client = await connect({ url: gateway.url, token: await devToken() });
    const { serverTime } = await client.waitFor('session.ready');
    client.close();
    return serverTime > Date.now() + 200_000;
  });
  expect(late).toBe(true);
});

/** What a gateway knows of revocations, on a wall clock that is put forward and back by `step`. */
async function steppedRevocations(tokenLifeMs: number) {
  const [directory, clock] = [new MemoryDirectory(), new VirtualClock()];
  let stepMs = 0;
  const stepped: Clock = {
    now: () => clock.now() + stepMs,
    monotonic: () => clock.monotonic(),
    after: (ms, fn) => clock.after(ms, fn),
    soon: (fn) => clock.soon(fn),
  };
  const log = { debug() {}, info() {}, warn() {}, error() {} };
  const revocations = new Revocations({ directory, log, pollMs: 1000, tokenLifeMs, clock: stepped });
  await revocations.start();
  const revoke = async (user: string) => {
    vi.spyOn(Date, 'now').mockReturnValueOnce(clock.now());
    await directory.revoke({ tenant: 'acme', kind: 'user', subject: user });
  };
  const step = (ms: number) => {
    stepMs = ms;
  };
  return { directory, clock, revocations, revoke, step };
}

test('[AUTH3] what is known of revocations grows old by the clock that never jumps, whichever way the wall clock is put', async () => {
  const { directory, clock, revocations, step } = await steppedRevocations(86_400_000);
  for (const stepMs of [300_000, -300_000]) {
    directory.failing = true;
    step(stepMs);
    await clock.run(7000);
    expect(revocations.stale()).toBe(false);
    await clock.run(3000);
    expect(revocations.stale()).toBe(true);
    directory.failing = false;
    await clock.run(2000);
    expect(revocations.stale()).toBe(false);
  }
  revocations.stop();
});

test('[AUTH3] a clock that is 5 minutes ahead for a while forgets no revocation that is needed when it is right again', async () => {
  const lifeMs = 600_000;
  const { clock, revocations, revoke, step } = await steppedRevocations(lifeMs);
  await revoke('eve');
  await clock.run(60_000);
  await revoke('mallory');
  await clock.run(lifeMs - 180_000);
  step(300_000);
  await clock.run(5000);
  step(0);
  await clock.run(5000);
  const token = { tenant: 'acme', capabilities: {}, issuedAt: -1000, kind: 'user' } as const;
  expect(revocations.refuses({ ...token, id: 'eve' })).toBe(true);
  expect(revocations.refuses({ ...token, id: 'ann' })).toBe(false);
  revocations.stop();
});

test('[AUTH1] what both clocks refuse is refused for good, whatever the difference', async () => {
  const { auth } = await setUp({ clock: { off: true, offsetMs: 300_000 }, now: () => Date.now() - 300_000 });
  const ended = devToken({ claims: { iat: now() - 7200, exp: now() - 3600 } });
  await expect(auth.token(await ended)).rejects.toMatchObject({ code: 'token_expired' });
  await expect(auth.token(await devToken({ secret: 'x'.repeat(32) }))).rejects.toMatchObject({
    code: 'unauthenticated',
  });
});
