import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { connect } from '../support/client.js';
import { freePort } from '../support/ports.js';
import { type RedisServer, startRedis } from '../support/redis.js';
import { openStage, type Stage, tokenOf } from './stage.js';

describe('several processes on one port', () => {
  const children: ChildProcess[] = [];
  afterAll(() => {
    for (const child of children) child.kill('SIGKILL');
  });

  test('share its connections, and when one dies the others go on', async () => {
    const port = await freePort();
    for (let i = 0; i < 2; i++) {
      const child = fork(new URL('./stage-process.ts', import.meta.url), [String(port)], {
        execArgv: ['--import', 'tsx'],
      });
      children.push(child);
      await once(child, 'message');
    }
    const url = `http://127.0.0.1:${port}`;
    const clients = await Promise.all(
      Array.from({ length: 40 }, (_, i) => connect({ url, token: tokenOf({ id: `u${i}` }), reconnection: true })),
    );
    const counts = await Promise.all(
      children.map(async (child) => {
        const answer = once(child, 'message');
        child.send('count');
        return Number((await answer)[0]);
      }),
    );
    expect(counts[0]).toBeGreaterThan(0);
    expect(counts[1]).toBeGreaterThan(0);
    expect(counts.reduce((sum, count) => sum + count)).toBe(40);

    children[0]?.kill('SIGKILL');
    await expect.poll(() => clients.filter(({ disconnects }) => disconnects.length > 0).length).toBe(counts[0]);
    await Promise.all(clients.map((client) => client.until(() => client.socket.connected)));
    for (const client of clients) await client.call('room.join', { room: 'a' });
    for (const client of clients) client.close();
  });
});

describe('the control plane over Redis', () => {
  let redis: RedisServer;
  let here: Stage;
  let there: Stage;
  beforeAll(async () => {
    redis = await startRedis();
    const control = { url: redis.url, cluster: false, prefix: 'test-' };
    here = await openStage({}, { redis: control });
    there = await openStage({}, { redis: control });
  });
  afterAll(async () => {
    await here.close();
    await there.close();
    await redis.stop();
  });

  const revoked = async (id: string) => {
    const client = await connect({ url: there.url, token: tokenOf({ id }) });
    here.revoke({ tenant: 'demo', kind: 'user', subject: id });
    return client;
  };

  test('a revocation found by one gateway closes sessions of the others', async () => {
    await expect
      .poll(async () => (await revoked('mal')).waitFor('session.closing', undefined, 300).catch(() => undefined), {
        timeout: 10_000,
      })
      .toMatchObject({ code: 'unauthenticated' });
  });

  test('Redis away hurts nobody, and when it is back the control plane is too', async () => {
    await redis.kill9();
    const local = await connect({ url: here.url, token: tokenOf({ id: 'loc' }) });
    here.revoke({ tenant: 'demo', kind: 'user', subject: 'loc' });
    await local.waitFor('session.closing');
    const fine = await connect({ url: there.url, token: tokenOf({ id: 'fine' }) });
    await fine.call('room.join', { room: 'a' });
    await redis.start();
    await expect
      .poll(async () => (await revoked('mal2')).waitFor('session.closing', undefined, 300).catch(() => undefined), {
        timeout: 15_000,
      })
      .toMatchObject({ code: 'unauthenticated' });
    fine.close();
  });

  test('its namespace lets nobody in', async () => {
    await expect(connect({ url: here.url, namespace: '/control', token: tokenOf() })).rejects.toThrow(
      'Invalid namespace',
    );
  });
});
