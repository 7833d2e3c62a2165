import postgres from 'postgres';
import { expect } from 'vitest';
import type { Publisher } from './log-publisher.js';

export interface StoredEvent {
  seq: number;
  mid: string;
  data: unknown;
}

/** Asks the database itself, past the gateways. */
export async function inDatabase<T>(url: string, ask: (sql: postgres.Sql) => PromiseLike<T>): Promise<T> {
  const sql = postgres(url, { max: 1, onnotice: () => undefined });
  try {
    await sql`select set_config('tutti.tenants', '*', false)`;
    return await ask(sql);
  } finally {
    await sql.end({ timeout: 1 });
  }
}

/** The events of a room as they stand in the table. */
export const storedEvents = (url: string, room: string, tenant = 'demo'): Promise<StoredEvent[]> =>
  inDatabase(url, async (sql) => {
    const rows = await sql<{ seq: string; mid: string; data: unknown }[]>`
      select e.seq, e.mid, e.data from tutti.events e join tutti.rooms r on r.id = e.room_id
      where r.tenant_id = ${tenant} and r.name = ${room} order by e.seq`;
    return rows.map(({ seq, mid, data }) => ({ seq: Number(seq), mid, data }));
  });

/** LOG1 to LOG4, by the table and what publishers were told. @returns the mids in the order of the log. */
export async function expectWholeLog(url: string, room: string, publishers: readonly Publisher[]): Promise<string[]> {
  const events = await storedEvents(url, room);
  const mids = events.map(({ mid }) => mid);
  expect(
    events.map(({ seq }) => seq),
    'consecutive from 1',
  ).toEqual(events.map((_, at) => at + 1));
  expect(new Set(mids).size, 'no mid twice').toBe(mids.length);
  const head = await inDatabase(url, (sql) => sql`select head from tutti.rooms where name = ${room}`);
  expect(Number(head[0]?.head)).toBe(events.length);
  for (const { mid, data } of events) expect(data).toEqual({ mid });
  for (const publisher of publishers) {
    const at = new Map(events.map(({ seq, mid }) => [mid, seq]));
    expect(
      publisher.acked.map(({ mid }) => ({ mid, seq: at.get(mid) })),
      'acknowledged events stand where they were acknowledged',
    ).toEqual(publisher.acked);
    const own = mids.filter((mid) => mid.startsWith(`${publisher.name}-`));
    expect(own, 'in the order of their publisher').toEqual(publisher.acked.map(({ mid }) => mid));
    expect(publisher.faults).toEqual([]);
  }
  const sent = new Set(publishers.flatMap(({ acked }) => acked.map(({ mid }) => mid)));
  expect(
    mids.filter((mid) => !sent.has(mid)),
    'nothing that nobody sent',
  ).toEqual([]);
  return mids;
}
