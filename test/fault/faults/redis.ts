import { createConnection } from 'node:net';
import { type Fault, peopled } from './fault.js';

/** Says one command to Redis on a connection of its own. @throws Error where Redis refuses it or is not there. */
function say(port: number, command: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = createConnection({ port, host: '127.0.0.1' });
    socket.setTimeout(10_000, () => socket.destroy(new Error(`no answer to ${command}`)));
    socket.once('error', reject);
    socket.once('connect', () => socket.write(`${command}\r\n`));
    socket.once('data', (answer) => {
      socket.destroy();
      if (answer.toString().startsWith('-')) reject(new Error(`${command}: ${answer.toString().trim()}`));
      else resolve();
    });
  });
}

const DELIVERY = 'Publishing and delivery within a gateway go on; across gateways what was missed is repaired (FEED2).';
const nothing = async () => undefined;

export const redisFaults: Fault[] = [
  {
    kind: 'redis-kill',
    part: 'redis',
    aloneEvery: 4,
    weight: 2,
    lasts: [500, 4000],
    promise: DELIVERY,
    async inject({ world }) {
      await world.redis.kill9();
      return { target: 'redis', heal: () => world.redis.start() };
    },
  },
  {
    kind: 'redis-flushall',
    part: 'redis',
    weight: 2,
    lasts: [0, 0],
    promise: 'Redis holds nothing that cannot be had again.',
    async inject({ world }) {
      await say(world.redis.port, 'FLUSHALL');
      return { target: 'redis', heal: nothing };
    },
  },
  {
    kind: 'redis-pause',
    part: 'redis',
    weight: 2,
    lasts: [1000, 4000],
    promise: DELIVERY,
    async inject({ world }, { lastsMs }) {
      await say(world.redis.port, `CLIENT PAUSE ${lastsMs} ALL`);
      return { target: 'redis', heal: () => say(world.redis.port, 'PING') };
    },
  },
  {
    kind: 'redis-kill-pubsub',
    part: 'redis',
    weight: 2,
    lasts: [0, 0],
    promise: 'Subscriptions come back by themselves, and what was missed is repaired (FEED2).',
    async inject({ world }) {
      await say(world.redis.port, 'CLIENT KILL TYPE pubsub');
      return { target: 'redis', heal: nothing };
    },
  },
  {
    kind: 'redis-blackhole',
    part: 'redis',
    aloneEvery: 4,
    weight: 2,
    lasts: [2000, 6000],
    promise: DELIVERY,
    async inject(stage, draw) {
      const seat = peopled(stage, draw);
      seat.redis.blackhole();
      return { target: seat.name, heal: async () => seat.redis.heal() };
    },
  },
];
