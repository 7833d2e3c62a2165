import { afterAll, beforeAll, expect, test } from 'vitest';
import { roomKey } from '../../src/core/keys.js';
import type { EventLog, Range } from '../../src/core/log.js';
import { LogPages } from '../../src/core/log-pages.js';
import type { Database } from '../../src/db/database.js';
import { freshDatabase } from '../support/postgres.js';
import { Counts, event, logOf, opened, silent } from './opened.js';

/* Readers of one room's log in Postgres, whose events are of very different sizes. */

const SIZES = [
  { events: 700, bytes: 100 },
  { events: 60, bytes: 60_000 },
  { events: 3, bytes: 500_000 },
  { events: 200, bytes: 3000 },
  { events: 1500, bytes: 50 },
];
const EVENTS = SIZES.reduce((total, { events }) => total + events, 0);
const BYTES = SIZES.reduce((total, { events, bytes }) => total + events * bytes, 0);

let fresh: Awaited<ReturnType<typeof freshDatabase>>;
let database: Database;
let log: EventLog;

beforeAll(async () => {
  fresh = await freshDatabase();
  database = await opened(fresh.url);
  log = logOf(database);
  let n = 0;
  for (const { events, bytes } of SIZES) {
    const texts = Array.from({ length: events }, () => `${n++}:${'x'.repeat(bytes)}`);
    await Promise.all(texts.map((text) => log.append(event('a', 'mixed', text.split(':')[0] ?? '', text))));
  }
});
afterAll(async () => {
  await database?.close();
  await fresh?.drop();
});

/** Pages of the room, and what was read for them. */
function pagesOf(room: string) {
  const read = { queries: 0, bytes: 0 };
  const counted: EventLog = {
    ...log,
    async read(tenant: string, name: string, range: Range) {
      const page = await log.read(tenant, name, range);
      read.queries += 1;
      for (const { data } of page?.events ?? []) read.bytes += data.length;
      return page;
    },
  };
  return { read, pages: new LogPages(roomKey('a', room), { log: counted, metrics: new Counts(), logger: silent }) };
}

/** What a reader gets that takes `most` characters at a time, from after `cursor` on. */
async function readOn(pages: LogPages, cursor: number, most: number): Promise<string[]> {
  const got: string[] = [];
  for (let at = cursor; at < EVENTS; ) {
    const page = await pages.with(at + 1);
    if (!page) throw new Error('no room');
    expect(page.after).toBeLessThanOrEqual(at);
    const rest = page.frames.slice(at - page.after);
    expect(rest.length).toBeGreaterThan(0);
    let room = most;
    for (const frame of rest) {
      if (room <= 0) break;
      got.push(frame);
      room -= frame.length;
      at += 1;
    }
  }
  return got;
}

const numbers = (frames: string[]) => frames.map((frame) => Number(/"mid":"(\d+)"/.exec(frame)?.[1]));

test('[RES1] readers from anywhere get every event once and in order, whatever the sizes of events and of what they take', async () => {
  const { pages } = pagesOf('mixed');
  const starts = [0, 1, 699, 700, 731, 760, 763, 900, EVENTS - 1, EVENTS];
  const readers = starts.flatMap((from) => [30_000, 128 * 1024, 1024 * 1024].map((most) => ({ from, most })));
  const got = await Promise.all(readers.map(({ from, most }) => readOn(pages, from, most)));
  for (const [at, { from }] of readers.entries()) {
    expect(numbers(got[at] ?? [])).toEqual(Array.from({ length: EVENTS - from }, (_, n) => from + n));
  }
});

test('[LIM6] what is read of the log is little more than what is sent, of large events as of small ones', async () => {
  const { read, pages } = pagesOf('mixed');
  await readOn(pages, 0, 256 * 1024);
  expect(read.bytes).toBeLessThan(BYTES * 2);
  expect(read.queries).toBeLessThan(60);
});

test('[RES1] readers at the same place share a page that is on its way', async () => {
  const { read, pages } = pagesOf('mixed');
  await Promise.all(Array.from({ length: 500 }, (_, n) => pages.with(1 + n)));
  expect(read.queries).toBe(1);
});

test('[RES1] what is not there: a room, an event past the head, one before the floor', async () => {
  expect(await pagesOf('nothing').pages.with(1)).toBeUndefined();
  const { read, pages } = pagesOf('mixed');
  expect(await pages.with(EVENTS + 1)).toMatchObject({ head: { head: EVENTS } });
  expect(await pages.before(4)).toMatchObject({ after: 0, frames: { length: 3 } });
  expect(await pages.before(1)).toMatchObject({ frames: [] });
  await database.withTenants(['a'], (tx) => tx`update tutti.rooms set floor = 100 where name = 'mixed'`);
  expect(await pages.with(7)).toMatchObject({ head: { floor: 100 }, after: 100 });
  expect(read.queries).toBe(4);
});
