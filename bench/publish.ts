import { appendBatch } from '../src/db/append-batch.js';
import { Line } from '../src/db/line.js';
import { toJsonText } from '../src/protocol/primitives.js';
import { each, sleep } from './support/measure.js';
import { alternate, report } from './support/report.js';
import { isOk, type Session } from './support/session.js';
import { onStage, openSessions } from './support/stage.js';

const PUBLISHERS = 64;
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
      () => new Line({ url: stage.postgres.url, prepare: true, connectTimeoutMs: 5000 }),
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

    /** Batches of 64 over as many connections as the gateway has lanes; on one room they would only wait for its lock. */
    const floor = (rooms: number) => async () => {
      const used = rooms === 1 ? 1 : LANES;
      const start = performance.now();
      let stored = 0;
      await each(used, used, async (lane) => {
        const line = lines[lane];
        while (line && performance.now() - start < SECONDS * 1000) {
          const batch = Array.from({ length: PUBLISHERS }, (_, i) => ({
            tenant: 'demo',
            room: `floor-${rooms === 1 ? 0 : lane * (rooms / LANES) + (i % (rooms / LANES))}`,
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

    const many = await alternate(ROUNDS, ours(64, 8), floor(64));
    const one = await alternate(ROUNDS, ours(1, 8), floor(1));
    const manySingle = await alternate(ROUNDS, ours(64, 1), floor(64));
    const oneSingle = await alternate(ROUNDS, ours(1, 1), floor(1));
    report(`publish: acknowledged durable publishes a second, ${PUBLISHERS} publishers over sockets`, [
      { what: '64 rooms, 8 unanswered each', unit: '/s', ...many, aim: '≥ 0.5 ×' },
      { what: '1 room, 8 unanswered each', unit: '/s', ...one, aim: '≥ 0.5 ×' },
      { what: '64 rooms, 1 unanswered each', unit: '/s', ...manySingle },
      { what: '1 room, 1 unanswered each', unit: '/s', ...oneSingle },
    ]);
    for (const session of sessions) session.close();
    await Promise.all(lines.map((line) => line.close(1000)));
  });
}
