import { appendBatch } from '../src/db/append-batch.js';
import { Line } from '../src/db/line.js';
import { Servers } from '../src/db/servers.js';
import { toJsonText } from '../src/protocol/primitives.js';
import { isOk, type Session } from '../test/support/session.js';
import { each, sleep } from './support/measure.js';
import { alternate, type Row, report } from './support/report.js';
import { onStage, openSessions } from './support/stage.js';

const PUBLISHERS = 64;
const BATCH = 64;
const LANES = 4;
const SECONDS = 2;
const ROUNDS = 3;
const data = { text: 'x'.repeat(160) };
const by = toJsonText({ kind: 'user', id: 'publisher' });

/** Acknowledged durable publishes a second. */
export async function run(): Promise<void> {
  await onStage({ redis: false }, async (stage) => {
    const gateway = await stage.gateway();
    const sessions = await openSessions(gateway, PUBLISHERS, 'publisher');
    const lines = Array.from(
      { length: LANES },
      () => new Line({ servers: new Servers(stage.postgres.url), prepare: true, connectTimeoutMs: 5000 }),
    );

    let published = 0;
    /** Every publisher keeps `window` publishes unanswered. */
    const ours = (rooms: number, window: number) => async () => {
      let acknowledged = 0;
      let going = true;
      const open = new Map<Session, number>();
      for (const [i, session] of sessions.entries()) {
        const room = `publish-${i % rooms}`;
        const next = () => session.command('event.publish', { room, type: 'note', data, mid: `m${++published}` });
        open.set(session, window);
        session.onAck = (buffer, start, end) => {
          if (!isOk(buffer, start, end)) throw new Error(buffer.toString('utf8', start, end));
          if (going) {
            acknowledged += 1;
            session.wire.send(next());
          } else open.set(session, (open.get(session) ?? 0) - 1);
        };
        session.wire.send(...Array.from({ length: window }, next));
      }
      const start = performance.now();
      await sleep(SECONDS * 1000);
      going = false;
      const rate = acknowledged / ((performance.now() - start) / 1000);
      while ([...open.values()].some((left) => left > 0)) await sleep(10);
      return rate;
    };

    /** Full batches over as many connections as carry the same number of events at a time; a room is in one lane. */
    const floor = (rooms: number, window: number) => async () => {
      const used = rooms === 1 ? 1 : Math.min(LANES, window);
      const start = performance.now();
      let stored = 0;
      await each(used, used, async (lane) => {
        const line = lines[lane];
        while (line && performance.now() - start < SECONDS * 1000) {
          const batch = Array.from({ length: BATCH }, (_, i) => ({
            tenant: 'demo',
            room: `floor-${lane * (rooms / used) + (i % (rooms / used))}`,
            mid: `m${++published}`,
            type: 'note',
            data: toJsonText(data),
            by,
          }));
          await appendBatch(line.sql, batch);
          stored += batch.length;
        }
      });
      return stored / ((performance.now() - start) / 1000);
    };

    const rows: Row[] = [];
    for (const window of [8, 1]) {
      for (const rooms of [64, 1]) {
        const rounds = await alternate(ROUNDS, ours(rooms, window), floor(rooms, window));
        const what = `${rooms === 1 ? '1 room' : `${rooms} rooms`}, ${window} unanswered each`;
        rows.push({ what, unit: '/s', ...rounds, aim: '≥ 0.5 ×' });
      }
    }
    report(`publish: acknowledged durable publishes a second, ${PUBLISHERS} publishers over sockets`, rows);
    for (const session of sessions) session.close();
    await Promise.all(lines.map((line) => line.close(1000)));
  });
}
