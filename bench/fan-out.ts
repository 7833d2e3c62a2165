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

/** Server CPU of one delivery in a room of 1,000 sockets; the next ten leave when all have the last ten. */
export async function run(): Promise<void> {
  await onStage({ redis: false }, async (stage) => {
    const gateway = await stage.gateway();
    const floor = await stage.floor('publish');
    const tally = new Tally();
    const publisher = await openSession(gateway, 'publisher');
    const readers = await openSessions(gateway, READERS);
    let sample = '';
    for (const reader of readers) {
      await reader.call('room.join', { room: 'fan-out' });
      reader.onPush = () => tally.add();
    }
    const [first] = readers;
    if (first) {
      first.onPush = (buffer, start, end) => {
        if (sample === '') sample = buffer.toString('latin1', start, end);
        tally.add();
      };
    }
    const raw = await each(READERS, 100, () => Wire.open(floor.port, '/', () => tally.add()));
    const control = await Wire.open(floor.port, '/control');

    const turns = (pid: number, turn: () => void) => async () => {
      const cpu = await cpuOf(pid, async () => {
        for (let i = 0; i < TURNS; i++) await tally.grow(READERS * PER_TURN, turn);
      });
      return (cpu / DELIVERIES) * 1e6;
    };
    const ours = (command: string) =>
      turns(gateway.pid, () => {
        const one = () => publisher.command(command, { room: 'fan-out', type: 'note', data: { text } });
        publisher.wire.send(...Array.from({ length: PER_TURN }, one));
      });
    await ours('event.publish')();
    const base = turns(floor.pid, () => control.send(sample));
    const events = await alternate(ROUNDS, ours('event.publish'), base);
    const broadcasts = await alternate(ROUNDS, ours('broadcast.send'), base);

    report(`fan-out: 1 room, ${READERS} sockets, ${PER_TURN} at once, server CPU of one delivery`, [
      { what: 'durable events, with their publish and commit', unit: 'µs', ...events, aim: '≤ 1.25 ×' },
      { what: 'broadcasts', unit: 'µs', ...broadcasts },
    ]);
    for (const one of [...readers, publisher]) one.close();
    for (const one of [...raw, control]) one.close();
  });
}
