import { Session } from '../test/support/session.js';
import { each, type Memory, memoryOf, memoryProbe, sleep } from './support/measure.js';
import { report } from './support/report.js';
import { onStage, openSession } from './support/stage.js';

const CONNECTIONS = 10_000;
const PER_ROOM = 100;
/** Connections before the first look, so that what is made once is not counted as one's own of each. */
const WARM = 500;

/** Memory of one idle connection, authenticated and in one room, after garbage collection. */
export async function run(): Promise<void> {
  await onStage({ redis: false }, async (stage) => {
    const gateway = await stage.gateway({}, memoryProbe);
    const ours = await grown({ pid: gateway.pid, output: gateway.logs }, async (i) => {
      const session = await openSession(gateway, `idle-${i}`);
      await session.call('room.join', { room: `idle-${Math.floor(i / PER_ROOM)}` });
      return session;
    });
    const bare = await stage.floor('socketio', [], memoryProbe);
    const floor = await grown(bare, () => Session.open({ port: bare.port, auth: {} }));
    const row = (what: string, of: (memory: Memory) => number, aim = '') => {
      return { what, unit: 'KB', ours: [of(ours) / 1000], floor: [of(floor) / 1000], aim };
    };
    report(
      `memory: one of ${CONNECTIONS} idle connections, each authenticated and in one of ${CONNECTIONS / PER_ROOM} rooms`,
      [row('resident', ({ rss }) => rss, '≤ 14 KB'), row('JavaScript heap', ({ heapUsed }) => heapUsed)],
    );
  });
}

async function grown(
  process: { pid: number; output(): string },
  open: (i: number) => Promise<Session>,
): Promise<Memory> {
  const sessions = await each(WARM, 50, open);
  await sleep(1000);
  const before = await memoryOf(process);
  sessions.push(...(await each(CONNECTIONS, 50, (i) => open(WARM + i))));
  await sleep(1000);
  const after = await memoryOf(process);
  for (const session of sessions) session.close();
  const of = (name: keyof Memory) => (after[name] - before[name]) / CONNECTIONS;
  return { rss: of('rss'), heapUsed: of('heapUsed'), external: of('external') };
}
