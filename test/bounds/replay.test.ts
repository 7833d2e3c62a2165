import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { memoryProbe } from '../../bench/support/measure.js';
import type { TestClient } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { devToken } from '../support/tokens.js';
import { Bounded } from './stage.js';

/* Memory of readers: a long history for one who does not read, and recent events of many rooms. */

const MiB = 1024 * 1024;
const BACKPRESSURE = MiB / 2;
/** Large beside what the sockets' own buffers in the kernel take, which is read and is nobody's memory here: up to 10 MiB. */
const EVENT = 4 * 1024;
const EVENTS = 25_000;
const HISTORY = EVENTS * EVENT;
/** Characters of a page of the log. */
const PAGE = BACKPRESSURE / 4;

let on: Bounded;
beforeAll(async () => {
  on = await Bounded.start({
    TUTTI_SOCKET_MAX_BACKPRESSURE_BYTES: String(BACKPRESSURE),
    TUTTI_RING_BYTES_PER_ROOM: String(64 * 1024),
    TUTTI_RING_BYTES_TOTAL: String(MiB),
    TUTTI_HEAD_CHECK_MS: '200',
    TUTTI_COMMANDS_PER_SECOND: '10000',
    TUTTI_SOCKET_PING_TIMEOUT_MS: '60000',
    TUTTI_SOCKET_PING_INTERVAL_MS: '60000',
    NODE_OPTIONS: memoryProbe,
  });
});
afterEach(() => on.undo.all());
afterAll(() => on?.stop());

/** Stops and resumes reading at the socket of the operating system. */
function tcp(client: TestClient): { pause(): void; resume(): void } {
  const { engine } = client.socket.io as unknown as { engine: { transport: { ws: { _socket: never } } } };
  return engine.transport.ws._socket;
}

test('[SLOW1] [LIM6] a reader that does not read joins a long history: it costs a buffer, and gets it all when it reads', async () => {
  const { sql } = on;
  await sql`insert into tutti.rooms (tenant_id, name, epoch, head) values ('demo', 'long', 'e1', ${EVENTS})`;
  await sql`insert into tutti.events (room_id, seq, tenant_id, mid, type, data, by, at)
      select r.id, n, 'demo', 'm' || n, 'a', to_json(repeat('x', ${EVENT}::integer)), '{"kind":"server","id":"s"}', 0
      from tutti.rooms r, generate_series(1, ${EVENTS}::integer) n where r.name = 'long'`;
  const [slow, quick] = await Promise.all([on.client(devToken()), on.client(devToken())]);
  // What a first look at a room takes is not the replay's.
  await quick.call('room.join', { room: 'long', from: 'latest' });
  await quick.call('event.history', { room: 'long', limit: 500 });
  const [before, read] = [await on.resident(), await replays()];
  tcp(slow).pause();
  void slow.ask('room.join', { room: 'long', from: 'start' }, 60_000).catch(() => undefined);
  await eventually('the replay stands', async () => {
    const [queries, later] = [await replays(), await new Promise((wait) => setTimeout(wait, 300)).then(replays)];
    return queries > 0 && queries === later;
  });
  // Some pages were read, by far not all, and what was is not in memory.
  const pages = (await replays()) - read;
  expect(pages).toBeGreaterThan(0);
  expect(pages).toBeLessThan(HISTORY / PAGE / 2);
  expect((await on.resident()) - before).toBeLessThan(HISTORY / 3);
  await quick.call('event.publish', { room: 'long', type: 'a', data: 'live' });
  await quick.waitFor('event', ({ data }) => data === 'live');
  expect(slow.disconnects).toEqual([]);
  tcp(slow).resume();
  await slow.until(() => lastSeq(slow) > EVENTS, 'the history', 60_000);
  const got = slow.of('event');
  expect(got.map(({ seq }) => seq)).toEqual(Array.from({ length: EVENTS + 1 }, (_, i) => i + 1));
}, 90_000);

test('[SLOW1] [LIM6] a reader that does not read joins many rooms at once: all their replays together cost a buffer', async () => {
  const { sql } = on;
  const rooms = Array.from({ length: 30 }, (_, n) => `many-${n}`);
  await sql`insert into tutti.rooms (tenant_id, name, epoch, head) select 'demo', name, 'e1', 500 from unnest(${rooms}::text[]) name`;
  await sql`insert into tutti.events (room_id, seq, tenant_id, mid, type, data, by, at)
    select r.id, n, 'demo', 'm' || n, 'a', to_json(repeat('x', 1200)), '{"kind":"server","id":"s"}', 0
    from tutti.rooms r, generate_series(1, 500) n where r.name = any(${rooms})`;
  const slow = await on.client(devToken());
  tcp(slow).pause();
  const joined = Promise.all(rooms.map((room) => slow.ask('room.join', { room, from: 'start' }, 60_000)));
  await eventually('the replays stand', async () => {
    const [queries, later] = [await replays(), await new Promise((wait) => setTimeout(wait, 300)).then(replays)];
    return queries > 0 && queries === later;
  });
  tcp(slow).resume();
  expect((await joined).every(({ ok }) => ok)).toBe(true);
  await slow.until(() => slow.of('event').length === 500 * rooms.length, 'every event', 30_000);
  for (const room of rooms) {
    const seqs = slow.of('event').flatMap((event) => (event.room === room ? [event.seq] : []));
    expect(seqs).toEqual(Array.from({ length: 500 }, (_, i) => i + 1));
  }
  expect(slow.disconnects).toEqual([]);
});

const lastSeq = (client: TestClient): number => (client.pushes.at(-1)?.data as { seq?: number } | undefined)?.seq ?? 0;
const replays = (): Promise<number> => on.metric('tutti_log_queries_total{purpose="replay"}');

test('[LIM6] recent events in memory are bounded for a room and over all rooms; readers miss nothing', async () => {
  const [reader, publisher] = await Promise.all([on.client(devToken()), on.client(devToken())]);
  const rooms = Array.from({ length: 24 }, (_, n) => `ring-${n}`);
  await Promise.all(rooms.map((room) => reader.call('room.join', { room, from: 'start' })));
  const data = 'x'.repeat(15 * 1024);
  for (let round = 0; round < 6; round++) {
    await Promise.all(rooms.map((room) => publisher.call('event.publish', { room, type: 'a', data })));
  }
  await eventually('the rings are within bounds', async () => {
    const [bytes, dropped] = [await on.metric('tutti_ring_bytes'), await on.reached('ring_total')];
    return dropped > 0 && bytes > 0 && bytes <= MiB;
  });
  await reader.until(() => reader.of('event').length === 24 * 6, 'every event');
  // Of one room at most its own bound; what is no longer in memory comes from the log.
  const late = await on.client(devToken());
  await Promise.all(rooms.map((room) => late.call('room.join', { room, from: 'start' })));
  await late.until(() => late.of('event').length === 24 * 6, 'every event');
  for (const room of rooms) {
    expect(late.of('event').flatMap((event) => (event.room === room ? [event.seq] : []))).toEqual([1, 2, 3, 4, 5, 6]);
  }
});
