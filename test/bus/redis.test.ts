import { Redis } from 'ioredis';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { eventually } from '../support/eventually.js';
import { type FaultProxy, startProxy } from '../support/proxy.js';
import { type RedisServer, startRedis } from '../support/redis.js';
import { event, flows, keysOf, type Peer, redisPeer, room } from './peer.js';

let redis: RedisServer;
const peers: Peer[] = [];
const proxies: FaultProxy[] = [];

const peer = async (url = redis.url) => {
  const made = await redisPeer(url, 'test:');
  peers.push(made);
  return made;
};

beforeEach(async () => {
  redis = await startRedis();
});
afterEach(async () => {
  await Promise.all(peers.splice(0).map(({ bus }) => bus.close()));
  await Promise.all(proxies.splice(0).map((proxy) => proxy.close()));
  await redis.stop();
});

async function inspect<T>(look: (client: Redis) => Promise<T>): Promise<T> {
  const client = new Redis(redis.url, { retryStrategy: null });
  client.on('error', () => undefined);
  try {
    return await look(client);
  } finally {
    client.disconnect();
  }
}

test('[FEED2] Redis killed and restarted: announcements flow again, with every subscription, and the listener is told', async () => {
  const [one, two] = [await peer(), await peer()];
  const rooms = Array.from({ length: 500 }, (_, i) => room(`r${i}`));
  await Promise.all(rooms.map((name) => two.bus.subscribe(name)));
  expect(two.bus.connected()).toBe(true);

  await redis.kill9();
  await eventually('both noticed', () => !one.bus.connected() && !two.bus.connected());
  expect(two.metrics.read('bus_connected')).toBe(0);
  one.bus.announce(room('r0'), event(1));
  expect(one.metrics.total('bus_messages', { direction: 'dropped', kind: 'event' })).toBe(1);
  two.bus.unsubscribe(room('r1'));
  await two.bus.subscribe(room('new')); // resolves although nobody confirms it

  await redis.start();
  await eventually('both are back', () => one.bus.connected() && two.bus.connected());
  expect(one.reconnects()).toBe(1);
  expect(two.reconnects()).toBe(1);
  expect(two.metrics.total('bus_reconnects')).toBe(1);
  for (const [n, name] of [...rooms, room('new')].entries()) one.bus.announce(name, event(n));
  await eventually('every room is heard', () => two.got.length === 500);
  expect(two.got.some(({ room: from }) => from === room('r1'))).toBe(false);
});

test('a gateway that starts without Redis works as soon as there is one', async () => {
  await redis.kill9();
  const [one, two] = await Promise.all([peer(), peer()]);
  expect(one.bus.connected()).toBe(false);
  await two.bus.subscribe(room('a'));
  one.bus.announce(room('a'), event(1));
  await redis.start();
  await eventually('connected', () => one.bus.connected() && two.bus.connected());
  expect(two.reconnects()).toBe(1);
  one.bus.announce(room('a'), event(2));
  await eventually('it flows', () => keysOf(two).includes('e1:2'));
});

test('CLIENT KILL TYPE pubsub: the subscriptions come back', async () => {
  const [one, two] = [await peer(), await peer()];
  await two.bus.subscribe(room('a'));
  await inspect((client) => client.call('CLIENT', 'KILL', 'TYPE', 'pubsub'));
  await eventually('told', () => two.reconnects() === 1 && two.bus.connected());
  await flows(one, two, room('a'));
});

test('a connection that is open but passes nothing is noticed and replaced', async () => {
  const proxy = await startProxy(redis.port);
  proxies.push(proxy);
  const [one, two] = [await peer(), await peer(`redis://127.0.0.1:${proxy.port}`)];
  await two.bus.subscribe(room('a'));
  proxy.blackhole();
  await eventually('noticed', () => !two.bus.connected());
  expect(one.bus.connected()).toBe(true);
  two.bus.announce(room('a'), event(1)); // neither throws nor waits
  await two.bus.subscribe(room('b'));
  proxy.heal();
  proxy.drop();
  await eventually('back', () => two.bus.connected());
  expect(two.reconnects()).toBeGreaterThanOrEqual(1);
  await flows(one, two, room('a'));
  await flows(one, two, room('b'));
});

test('Redis that stops answering costs bounded memory: announcements are dropped and counted', async () => {
  const one = await peer();
  redis.freeze();
  const frame = event(1, 'x'.repeat(100_000));
  for (let i = 0; i < 400; i++) one.bus.announce(room('a'), frame);
  const dropped = one.metrics.total('bus_messages', { direction: 'dropped' });
  expect(dropped).toBeGreaterThan(200);
  redis.thaw();
  await eventually('it works again', () => one.bus.connected());
});

test('a gateway that does not read what Redis sends is cut by Redis at its limit, and hears everything after', async () => {
  await redis.stop();
  redis = await startRedis(['--client-output-buffer-limit', 'pubsub 1mb 0 0']);
  const proxy = await startProxy(redis.port);
  proxies.push(proxy);
  const [one, two] = [await peer(), await peer(`redis://127.0.0.1:${proxy.port}`)];
  await two.bus.subscribe(room('a'));
  const subscribers = () =>
    inspect(async (client) => {
      const list = String(await client.call('CLIENT', 'LIST', 'TYPE', 'pubsub'));
      return list.split('\n').filter((line) => line.includes('tutti-bus')).length;
    });
  expect(await subscribers()).toBe(2);
  // Nothing the gateway does reaches Redis now: only Redis itself can end the connection.
  proxy.blackhole();
  const frame = event(1, 'x'.repeat(100_000));
  await eventually('Redis cut it', async () => {
    for (let i = 0; i < 20; i++) one.bus.announce(room('a'), frame);
    return (await subscribers()) === 1;
  });
  expect(one.bus.connected()).toBe(true);
  proxy.heal();
  proxy.drop();
  await eventually('it is back', () => two.bus.connected() && two.reconnects() > 0);
  await flows(one, two, room('a'));
});

test('[BUS1] Redis sends a gateway nothing for rooms it has not subscribed', async () => {
  const [one, two] = [await peer(), await peer()];
  await two.bus.subscribe(room('a'));
  await two.bus.subscribe(room('b'));
  two.bus.unsubscribe(room('b'));
  await eventually('one subscriber of a, none of b', async () => {
    const counts = await inspect((client) => client.call('PUBSUB', 'SHARDNUMSUB', 'test:{acme:a}', 'test:{acme:b}'));
    return JSON.stringify(counts) === JSON.stringify(['test:{acme:a}', 1, 'test:{acme:b}', 0]);
  });
  one.bus.announce(room('b'), event(1));
  one.bus.announce(room('a'), event(2));
  await eventually('a arrives', () => keysOf(two).includes('e1:2'));
  expect(two.metrics.total('bus_messages', { direction: 'in' })).toBe(1);
});

test('what is on a channel but is no announcement is ignored', async () => {
  const two = await peer();
  await two.bus.subscribe(room('a'));
  await inspect(async (client) => {
    for (const payload of ['', 'x', 'other-node..?key\nframe', 'other-node..ekey without end']) {
      await client.spublish('test:{acme:a}', payload);
    }
    await client.spublish('test:{acme:a}', 'other-node..hqueued\n');
  });
  await eventually('the good one arrived', () => two.got.length > 0);
  expect(two.got).toEqual([{ room: room('a'), message: { kind: 'hint', key: 'queued', frame: '' } }]);
});
