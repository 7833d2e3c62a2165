import { Redis } from 'ioredis';
import { Wire } from '../test/support/wire.js';
import { cpuOf, each, Tally } from './support/measure.js';
import { alternate, report } from './support/report.js';
import { onStage, openSession, openSessions } from './support/stage.js';

const READERS = 1000;
const PER_TURN = 10;
const TURNS = 150;
const ROUNDS = 5;
const DELIVERIES = READERS * PER_TURN * TURNS;
const text = 'x'.repeat(200);

/** CPU of the gateway that has the readers, while the publisher is on another one. */
export async function run(): Promise<void> {
  await onStage({ redis: true }, async (stage) => {
    const [far, near] = [await stage.gateway(), await stage.gateway()];
    const floor = await stage.floor('publish', [stage.redis.url]);
    const redis = new Redis(stage.redis.url, { enableAutoPipelining: true });
    const tally = new Tally();
    const publisher = await openSession(far, 'publisher');
    const readers = await openSessions(near, READERS);
    let sample = '';
    for (const reader of readers) {
      await reader.call('room.join', { room: 'fan-out' });
      reader.onPush = (buffer, start, end) => {
        if (sample === '') sample = buffer.toString('latin1', start, end);
        tally.add();
      };
    }
    const raw = await each(READERS, 100, () => Wire.open(floor.port, '/', () => tally.add()));

    const turns = (pid: number, turn: () => void) => async () => {
      const cpu = await cpuOf(pid, async () => {
        for (let i = 0; i < TURNS; i++) await tally.grow(READERS * PER_TURN, turn);
      });
      return (cpu / DELIVERIES) * 1e6;
    };
    const ours = (command: string) =>
      turns(near.pid, () => {
        const one = () => publisher.command(command, { room: 'fan-out', type: 'note', data: { text } });
        publisher.wire.send(...Array.from({ length: PER_TURN }, one));
      });
    await ours('event.publish')();
    const base = turns(floor.pid, () => {
      for (let i = 0; i < PER_TURN; i++) void redis.spublish('floor', sample);
    });
    const events = await alternate(ROUNDS, ours('event.publish'), base);
    const broadcasts = await alternate(ROUNDS, ours('broadcast.send'), base);

    report(
      `fan-out through Redis: 1 room, ${READERS} sockets, ${PER_TURN} at once, reading gateway's CPU of one delivery`,
      [
        { what: 'durable events', unit: 'µs', ...events, aim: '≤ 1.5 ×' },
        { what: 'broadcasts', unit: 'µs', ...broadcasts },
      ],
    );
    for (const one of [...readers, publisher]) one.close();
    for (const one of raw) one.close();
    redis.disconnect();
  });
}
