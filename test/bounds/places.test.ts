import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { MemoryGuard, memoryShare } from '../../src/core/memory.js';
import { connect } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { DEV_WORKER_KEY, devToken } from '../support/tokens.js';
import { acmeToken, Bounded, overloaded, quotaExceeded, refused } from './stage.js';

/* Places that sessions and rooms take, and the memory behind them all. */

describe('places', () => {
  let on: Bounded;
  beforeAll(async () => {
    on = await Bounded.start({
      TUTTI_MAX_CONNECTIONS: '6',
      TUTTI_MAX_CONNECTIONS_PER_TENANT: '4',
      TUTTI_MAX_ROOMS_OPEN: '8',
      TUTTI_MAX_ROOMS_OPEN_PER_TENANT: '5',
      TUTTI_ROOM_LINGER_MS: '0',
    });
  });
  afterEach(() => on.undo.all());
  afterAll(() => on?.stop());

  test('[LIM1] sessions of a tenant have a limit, over sockets and streams alike; another tenant comes in', async () => {
    const clients = await Promise.all([1, 2, 3].map((n) => on.client(devToken({ user: `u${n}` }))));
    const worker = await connect({ url: on.url, namespace: '/worker', auth: { key: DEV_WORKER_KEY } });
    on.undo.add(worker, (one) => one.close());
    await expect(on.client(devToken())).rejects.toMatchObject({ error: quotaExceeded(/tenant has 4 sessions/) });
    const stream = await fetch(`${on.url}/v1/rooms/r/stream`, {
      headers: { authorization: `Bearer ${await devToken()}` },
    });
    expect(stream.status).toBe(429);
    expect(await stream.json()).toMatchObject({ code: 'quota_exceeded', retryable: false });
    expect(await on.reached('sessions_tenant')).toBe(2);
    await (await on.client(acmeToken('bob'))).call('room.join', { room: 'r' });
    clients[0]?.close();
    const back = await eventually('a free place', () => on.client(devToken()).catch(() => undefined));
    await back.call('room.join', { room: 'r' });
  });

  test('[LIM1] a gateway that is full says so, to be tried later', async () => {
    const clients = await Promise.all([1, 2, 3, 4].map((n) => on.client(devToken({ user: `u${n}` }))));
    await Promise.all(['bob', 'bea'].map((user) => on.client(acmeToken(user))));
    const stream = await fetch(`${on.url}/v1/rooms/r/stream`, {
      headers: { authorization: `Bearer ${await acmeToken('ben')}` },
    });
    expect([stream.status, stream.headers.get('retry-after')]).toEqual([503, '1']);
    expect(await stream.json()).toMatchObject({ code: 'overloaded', retryable: true, retryAfterMs: 1000 });
    const upgrade = await fetch(`${on.url}/socket.io/?EIO=4&transport=websocket`, {
      headers: { connection: 'upgrade', upgrade: 'websocket' },
    }).catch(() => undefined);
    if (upgrade) expect(upgrade.status).toBeGreaterThanOrEqual(400);
    await expect(on.client(devToken())).rejects.toThrow();
    expect(await on.reached('connections')).toBeGreaterThanOrEqual(2);
    expect(await clients[0]?.ask('event.publish', { room: 'full', type: 'a', data: 1 })).toMatchObject({ ok: true });
    clients[0]?.close();
    await eventually('a free place', () => on.client(acmeToken('ben')).catch(() => undefined));
  });

  test('[LIM4] open rooms have a limit, of a tenant and of the gateway; a closed room makes room', async () => {
    const [ann, bob] = await Promise.all([on.client(devToken()), on.client(acmeToken('bob'))]);
    for (let n = 0; n < 5; n++) await ann.call('room.join', { room: `open-${n}` });
    expect(refused([await ann.ask('room.join', { room: 'open-5' })])).toEqual([quotaExceeded(/5 rooms open/)]);
    // A room that is open already, and what needs no open room, goes on.
    const ben = await on.client(devToken({ user: 'ben' }));
    await ben.call('room.join', { room: 'open-0' });
    await ann.call('event.publish', { room: 'open-5', type: 'a', data: 1 });
    for (let n = 0; n < 3; n++) await bob.call('room.join', { room: `open-${n}` });
    expect(refused([await bob.ask('room.join', { room: 'open-3' })])).toEqual([overloaded(/rooms are open/)]);
    expect([await on.reached('rooms_open_tenant'), await on.reached('rooms_open')]).toEqual([1, 1]);
    await ann.call('room.leave', { room: 'open-4' });
    await eventually('a free place', async () => (await ann.ask('room.join', { room: 'open-5' })).ok);
    await ann.call('room.leave', { room: 'open-5' });
    await eventually('a free place', async () => (await bob.ask('room.join', { room: 'open-3' })).ok);
  });
});

test('[LIM5] a gateway that is short of memory lets nobody new in, and serves on', async () => {
  // A hundredth of this heap is in use from the first moment on.
  const on = await Bounded.start({ TUTTI_MEMORY_MAX_PERCENT: '1', NODE_OPTIONS: '--max-old-space-size=256' });
  try {
    await expect(on.client(devToken())).rejects.toMatchObject({ error: overloaded(/short of memory/) });
    const token = await devToken();
    const stream = await fetch(`${on.url}/v1/rooms/r/stream`, { headers: { authorization: `Bearer ${token}` } });
    expect([stream.status, stream.headers.get('retry-after')]).toEqual([503, '2']);
    expect((await on.call(token, 'POST', '/v1/rooms/r/events', { type: 'a', data: 1 })).status).toBe(201);
    expect((await fetch(`${on.url}/readyz`)).status).toBe(200);
    expect(await on.reached('memory')).toBe(2);
    expect(await on.metric('tutti_memory_share')).toBeGreaterThan(0.01);
  } finally {
    await on.stop();
  }
});

test('[LIM5] who was refused for lack of memory is let in when there is some again', () => {
  let share = 0.9;
  let now = 0;
  const guard = new MemoryGuard(
    0.85,
    () => share,
    () => now,
  );
  expect(() => guard.check()).toThrow(/short of memory/);
  share = 0.5;
  now += 1000;
  guard.check();
  expect(memoryShare()).toBeGreaterThan(0);
  expect(memoryShare()).toBeLessThan(1);
});
