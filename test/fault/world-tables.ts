import type postgres from 'postgres';
import type { Part } from '../../src/protocol/parts.js';
import type { Entry } from './history.js';
import { OutputDigest } from './output-digest.js';

/** Events of one entry. */
const PAGE = 2000;

interface RoomRow {
  id: string;
  tenant: string;
  room: string;
  epoch: string;
  floor: string;
  head: string;
}

interface RunRow {
  id: string;
  tenant: string;
  room: string;
  mid: string | null;
  state: string;
  attempt: number;
  output: Part[] | null;
}

/** Writes what the tables hold into a history: every room's events in their order, and every run. */
export async function writeTables(sql: postgres.Sql, write: (entry: Entry) => void): Promise<void> {
  const rooms = await sql<RoomRow[]>`
    select id, tenant_id as tenant, name as room, epoch, floor, head from tutti.rooms order by id`;
  for (const room of rooms) await writeRoom(sql, room, write);
  const runs = sql<RunRow[]>`
    select r.id, r.tenant_id as tenant, m.name as room, r.mid, r.state, r.attempt, r.output::jsonb as output
    from tutti.runs r join tutti.rooms m on m.id = r.room_id order by r.id`.cursor(500);
  for await (const rows of runs) {
    for (const { id, tenant, room, mid, state, attempt, output } of rows) {
      const digest = new OutputDigest().add(...(output ?? []));
      write(['ran', id, tenant, room, mid, state, attempt, digest.toString()]);
    }
  }
}

async function writeRoom(sql: postgres.Sql, row: RoomRow, write: (entry: Entry) => void): Promise<void> {
  const { id, tenant, room, epoch } = row;
  const page = (seq: number, mids: string[]) =>
    write(['stored', tenant, room, epoch, Number(row.floor), Number(row.head), seq, mids]);
  // A page holds consecutive numbers: a hole in the table begins a new one.
  let first = Number(row.floor) + 1;
  let mids: string[] = [];
  const rows = sql<{ seq: string; mid: string }[]>`
    select seq, mid from tutti.events where room_id = ${id} order by seq`.cursor(PAGE);
  for await (const events of rows) {
    for (const { seq, mid } of events) {
      if (mids.length === PAGE || Number(seq) !== first + mids.length) {
        if (mids.length > 0) page(first, mids);
        first = Number(seq);
        mids = [];
      }
      mids.push(mid);
    }
  }
  page(first, mids);
}
