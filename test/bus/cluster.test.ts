import { Redis } from 'ioredis';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { eventually } from '../support/eventually.js';
import { freePort } from '../support/ports.js';
import { type RedisServer, startRedis } from '../support/redis.js';
import { event, flows, type Peer, redisPeer, room } from './peer.js';

// A real Redis Cluster of three masters on this machine.
const nodes: RedisServer[] = [];
const peers: Peer[] = [];

const on = async <T>(node: RedisServer, act: (client: Redis) => Promise<T>): Promise<T> => {
  const client = new Redis(node.url, { retryStrategy: null });
  client.on('error', () => undefined);
  try {
    return await act(client);
  } finally {
    client.disconnect();
  }
};

beforeAll(async () => {
  const busPorts: number[] = [];
  for (let i = 0; i < 3; i++) {
    const busPort = await freePort();
    busPorts.push(busPort);
    const settings = ['--cluster-enabled', 'yes', '--cluster-port', String(busPort), '--cluster-node-timeout', '30000'];
    nodes.push(await startRedis(settings));
  }
  const bounds = [0, 5461, 10923, 16384];
  for (const [i, node] of nodes.entries()) {
    await on(node, async (client) => {
      await client.call('CLUSTER', 'ADDSLOTSRANGE', String(bounds[i]), String((bounds[i + 1] ?? 0) - 1));
      await client.call('CLUSTER', 'SET-CONFIG-EPOCH', String(i + 1));
      const first = nodes[0];
      if (i > 0 && first) await client.call('CLUSTER', 'MEET', '127.0.0.1', String(first.port), String(busPorts[0]));
    });
  }
  for (const node of nodes) {
    await eventually(
      'the cluster is whole',
      () =>
        on(node, async (client) => /cluster_state:ok[\s\S]*cluster_known_nodes:3/.test(await client.cluster('INFO'))),
      30_000,
    );
  }
});

afterAll(async () => {
  await Promise.all(peers.map(({ bus }) => bus.close()));
  await Promise.all(nodes.map((node) => node.stop()));
});

const peer = async () => {
  const made = await redisPeer(nodes[0]?.url ?? '', 'test:', true);
  peers.push(made);
  return made;
};

test('rooms of all shards are announced, and a lost shard subscription comes back', async () => {
  const [one, two] = [await peer(), await peer()];
  await eventually('connected', () => one.bus.connected() && two.bus.connected());
  const rooms = Array.from({ length: 60 }, (_, i) => room(`r${i}`));
  await Promise.all(rooms.map((name) => two.bus.subscribe(name)));
  for (const [n, name] of rooms.entries()) one.bus.announce(name, event(n));
  await eventually('every room is heard', () => two.got.length === rooms.length);
  expect(new Set(two.got.map((got) => got.room))).toEqual(new Set(rooms));

  for (const node of nodes) await on(node, (client) => client.call('CLIENT', 'KILL', 'TYPE', 'pubsub'));
  for (const name of rooms.slice(0, 12)) await flows(one, two, name);
});

test('a shard that stops answering and returns: its rooms flow again and the listener is told', async () => {
  const [one, two] = [await peer(), await peer()];
  await eventually('connected', () => one.bus.connected() && two.bus.connected());
  const rooms = Array.from({ length: 12 }, (_, i) => room(`r${i}`));
  await Promise.all(rooms.map((name) => two.bus.subscribe(name)));
  const lost = nodes[2];
  lost?.freeze();
  await eventually('noticed', () => !two.bus.connected());
  lost?.thaw();
  await eventually('back', () => one.bus.connected() && two.bus.connected(), 30_000);
  expect(two.reconnects()).toBeGreaterThanOrEqual(1);
  for (const name of rooms) await flows(one, two, name);
});
