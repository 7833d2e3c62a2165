import { each } from '../../bench/support/measure.js';
import { eventually } from '../support/eventually.js';
import { Session } from '../support/session.js';
import { devToken } from '../support/tokens.js';

/** Clients at a time. */
const AT_ONCE = 100;
const USERS = 200;
/** Rooms that those who connect share. */
const SHARED_ROOMS = 50;
/** Rooms one session opens and leaves. */
const ROOMS_PER_SESSION = 50;

/** Limits that are in the way of thousands of clients from one place, and rooms that close soon after their last reader. */
export const CHURN_ENV = {
  LOG_LEVEL: 'warn',
  TUTTI_MAX_SESSIONS_PER_USER: '100000',
  TUTTI_COMMANDS_PER_SECOND: '1000000',
  TUTTI_TENANT_COMMANDS_PER_SECOND: '10000000',
  TUTTI_TENANT_PUBLISHES_PER_SECOND: '10000000',
  TUTTI_ROOM_LINGER_MS: '200',
};

/** What `/metrics` counts of things that must all be gone when everybody is. */
const HELD = [
  'sessions',
  'rooms_open',
  'room_joins',
  'ring_bytes',
  'append_queue',
  'runs_held',
  'runs_uncommitted_bytes',
];

interface Served {
  readonly url: string;
  readonly port: number;
}

const tokens = () => each(USERS, USERS, (n) => devToken({ user: `churn-${n}` }));

/** Clients that connect, authenticate, join a room, publish now and then, and are gone: half of them with a goodbye. */
export async function churnConnections(
  { port }: Served,
  count: number,
  progress?: (done: number) => void,
): Promise<void> {
  const known = await tokens();
  let done = 0;
  await each(count, AT_ONCE, async (n) => {
    const session = await Session.open({ port, auth: { token: known[n % USERS] ?? '' } });
    const room = `shared-${n % SHARED_ROOMS}`;
    await session.call('room.join', { room });
    if (n % 10 === 0) await session.call('event.publish', { room, type: 'note', data: n });
    if (n % 2 === 0) session.wire.send('41', '1');
    session.close();
    progress?.(++done);
  });
}

/** Rooms that are opened, written to, left, and never heard of again. */
export async function churnRooms({ port }: Served, count: number, progress?: (done: number) => void): Promise<void> {
  const known = await tokens();
  const name = Math.random().toString(36).slice(2);
  let done = 0;
  await each(Math.ceil(count / ROOMS_PER_SESSION), AT_ONCE / 5, async (n) => {
    const session = await Session.open({ port, auth: { token: known[n % USERS] ?? '' } });
    for (let i = 0; i < ROOMS_PER_SESSION; i++) {
      const room = `gone-${name}-${n}-${i}`;
      await session.call('room.join', { room, from: 'start' });
      await session.call('event.publish', { room, type: 'note', data: 'x'.repeat(200) });
      await session.call('room.leave', { room });
      progress?.(++done);
    }
    session.close();
  });
}

/** Resolves when nothing is held any more for anybody. @throws Error naming what is, after 15 s. */
export async function nothingHeld({ url }: Served): Promise<void> {
  let held: string[] = [];
  await eventually('nothing is held', async () => {
    const text = await (await fetch(`${url}/metrics`)).text();
    held = HELD.filter((name) => Number(new RegExp(`^tutti_${name} (\\d+)$`, 'm').exec(text)?.[1]) !== 0);
    return held.length === 0;
  }).catch((error: unknown) => {
    throw new Error(`still held: ${held}`, { cause: error });
  });
}
