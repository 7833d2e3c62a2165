import postgres from 'postgres';
import { Session } from '../test/support/session.js';
import { devToken } from '../test/support/tokens.js';
import { each, sleep } from './support/measure.js';
import { report } from './support/report.js';
import { onStage, openSession, type Stage } from './support/stage.js';

const CLIENTS = 10_000;
const ROOMS = 10;
const MISSED = 50;
const IDLE_SECONDS = 5;
/** Sockets that connect at a time: what the kernel's queue of a listening socket holds without loss. */
const AT_ONCE = 400;

/**
 * Ten thousand clients come back with their positions to a gateway that knows nothing of their rooms, as after a restart. Counts the
 * queries made for them, and checks that each gets exactly what it missed.
 */
export async function run(): Promise<void> {
  await onStage({ redis: false }, async (stage) => {
    const before = await stage.gateway();
    const publisher = await openSession(before, 'publisher');
    const positions: { epoch: string; seq: number }[] = [];
    for (let r = 0; r < ROOMS; r++) {
      const publish = async (_: number) =>
        publisher.call('event.publish', { room: `resume-${r}`, type: 'note', data: { text: 'x'.repeat(160) } });
      await each(20, 20, publish);
      positions.push((await publish(0)).position as { epoch: string; seq: number });
      await each(MISSED, MISSED, publish);
    }
    publisher.close();
    await before.stop();

    const gateway = await stage.gateway();
    const tokens = await each(CLIENTS, 100, (i) => devToken({ user: `client-${i}` }));
    let connecting = 0;
    let catchingUp = 0;
    const used = await transactions(stage, async () => {
      const start = performance.now();
      const sessions = await each(CLIENTS, AT_ONCE, (i) =>
        Session.open({ port: gateway.port, auth: { token: tokens[i] ?? '' } }),
      );
      connecting = performance.now() - start;
      await Promise.all(sessions.map((session, i) => resume(session, `resume-${i % ROOMS}`, positions[i % ROOMS])));
      catchingUp = performance.now() - start - connecting;
    });
    const idle = await transactions(stage, () => sleep(IDLE_SECONDS * 1000));
    const metrics = await (await fetch(`${gateway.url}/metrics`)).text();
    const counted = [...metrics.matchAll(/^tutti_log_queries_total\{.*\} (\d+)$/gm)].map(([, n]) => Number(n));
    const perRoom = counted.reduce((sum, n) => sum + n, 0) / ROOMS;
    const background = (idle / IDLE_SECONDS) * ((connecting + catchingUp) / 1000);
    report(
      `resume: ${CLIENTS} clients come back to ${ROOMS} rooms of a fresh gateway, ${MISSED} events missed by each ` +
        `(${seconds(connecting)} s to connect and authenticate, ${seconds(catchingUp)} s for all joins and events)`,
      [
        {
          what: 'queries of the log for a room, by the gateway (floor: one for each client)',
          unit: '',
          ours: [perRoom],
          floor: [CLIENTS / ROOMS],
          aim: '≤ 3',
        },
        {
          what: 'transactions for a room, by Postgres, beyond those of a gateway with idle readers',
          unit: '',
          ours: [Math.max(0, used - background) / ROOMS],
          floor: [CLIENTS / ROOMS],
        },
      ],
    );
  });
}

const seconds = (ms: number): string => (ms / 1000).toFixed(1);

/** Resolves when everything missed has arrived, in order. */
async function resume(session: Session, room: string, from?: { epoch: string; seq: number }): Promise<void> {
  if (!from) throw new Error('no position');
  const arrived: number[] = [];
  session.onPush = (buffer, start, end) => {
    const text = buffer.toString('latin1', start, end);
    if (text.startsWith('42["event"')) arrived.push(Number(/"seq":(\d+)/.exec(text)?.[1]));
    if (text.startsWith('42["room.resync"')) throw new Error(text);
  };
  await session.call('room.join', { room, from });
  for (let waited = 0; arrived.length < MISSED; waited += 5) {
    if (waited > 30_000) throw new Error(`${arrived.length} of ${MISSED} arrived`);
    await sleep(5);
  }
  if (arrived.some((seq, i) => seq !== from.seq + 1 + i)) throw new Error(`out of order: ${arrived}`);
}

/** Transactions of the server's database that ended during the work. */
async function transactions({ postgres: server }: Stage, work: () => Promise<unknown>): Promise<number> {
  const sql = postgres(server.url, { max: 1, onnotice: () => undefined });
  const count = async () => {
    // Counts are published with a delay of up to a second, by each connection for itself.
    await sleep(1500);
    const [row] = await sql<{ n: string }[]>`
      select xact_commit + xact_rollback as n from pg_stat_database where datname = current_database()`;
    return Number(row?.n);
  };
  try {
    const before = await count();
    await work();
    return (await count()) - before;
  } finally {
    await sql.end({ timeout: 1 });
  }
}
