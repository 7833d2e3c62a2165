import { roomKey, roomOf, tenantOf } from '../core/keys.js';
import type { EventLog, RoomHead, RoomSummary } from '../core/log.js';
import type { Logger, Metrics } from '../core/telemetry.js';
import type { JsonText } from '../protocol/primitives.js';
import { appendBatch, textArray } from './append-batch.js';
import { AppendLanes, type AppendLimits, type Commit } from './append-lanes.js';
import type { Database, Tx } from './database.js';

export type { AppendLimits } from './append-lanes.js';

/** Data of the events in one page, in bytes; the last one may go over. */
const PAGE_BYTES = 512 * 1024;
/** The same as stored, with at most 4 bytes more for each event of a page. */
const STORED_BYTES = PAGE_BYTES + 4 * 1024;
/** Rooms looked up in one statement. */
const HEADS_MAX = 1000;

interface EventRow {
  seq: number | null;
  mid: string;
  type: string;
  data: JsonText;
  by: JsonText;
  at: number;
}

/** A log that knows whether it is written to at the moment. */
export interface PostgresLog extends EventLog {
  /**
   * Since when appends, of some rooms or of all, are tried and not committed, ms since the Unix epoch; `undefined` while they are,
   * or where nobody appended for half a minute.
   */
  failingSince(): number | undefined;
}

/** The log of all rooms in Postgres. Takes a connection for each lane. */
export function createEventLog(database: Database, limits: AppendLimits, metrics: Metrics, log: Logger): PostgresLog {
  const commits = Array.from({ length: limits.lanes }, () => commitOver(database, limits));
  const lanes = new AppendLanes(commits, limits, metrics, log);

  return {
    append: (event) => lanes.append(event),
    drain: () => lanes.drain(),
    failingSince: () => lanes.failingSince(),

    open: (tenant, room) =>
      database.withTenants([tenant], async (tx) => {
        const find = () => tx<RoomHead[]>`
          select epoch, head, floor from tutti.rooms where tenant_id = ${tenant} and name = ${room}`;
        const [found] = await find();
        if (found) return found;
        await tx`insert into tutti.rooms (tenant_id, name, epoch)
          values (${tenant}, ${room}, left(replace(gen_random_uuid()::text, '-', ''), 16)) on conflict do nothing`;
        const [made] = await find();
        if (!made) throw new Error('A room was erased as it was made.');
        return made;
      }),

    async heads(rooms) {
      const heads = new Map<ReturnType<typeof roomKey>, RoomHead>();
      for (let i = 0; i < rooms.length; i += HEADS_MAX) {
        const chunk = rooms.slice(i, i + HEADS_MAX);
        const tenants = chunk.map(tenantOf);
        const names = chunk.map(roomOf);
        const rows = await database.withTenants(
          [...new Set(tenants)],
          (tx) => tx<(RoomHead & { tenant: string; room: string })[]>`
            select r.tenant_id as tenant, r.name as room, r.epoch, r.head, r.floor
            from unnest(${textArray(tenants)}::text[], ${textArray(names)}::text[]) as w(tenant, room)
            join tutti.rooms r on r.tenant_id = w.tenant and r.name = w.room`,
          'gateway',
        );
        for (const { tenant, room, epoch, head, floor } of rows)
          heads.set(roomKey(tenant, room), { epoch, head, floor });
      }
      return heads;
    },

    async read(tenant, room, { after = 0, before = Number.MAX_SAFE_INTEGER, limit, order }) {
      const rows = await database.withTenants([tenant], (tx) => {
        const direction = order === 'asc' ? tx`asc` : tx`desc`;
        // The seqs of a room are consecutive (LOG2), so both ends of the page are known: no plan, however bad, looks at more rows.
        const from = tx`greatest(r.floor, ${after}::bigint)`;
        const to = tx`least(r.head + 1, ${before}::bigint)`;
        const ends =
          order === 'asc'
            ? tx`${from}, least(${to}, ${from} + ${limit + 1})`
            : tx`greatest(${from}, ${to} - ${limit + 1}), ${to}`;
        // One statement, one snapshot: head, floor and events agree. The running sum ends a page of large events early; the one
        // of what is stored, which is never more, does so before anything beyond the page is fetched and decompressed.
        return tx<(RoomHead & EventRow)[]>`
          select r.epoch, r.head, r.floor, e.seq, e.mid, e.type, e.data::text as data, e.by::text as by, e.at
          from tutti.rooms r
          cross join lateral (values (${ends})) as page (low, high)
          left join lateral (
            select * from (
              select e.*, sum(octet_length(e.data::text)) over (order by e.seq ${direction}) - octet_length(e.data::text) as bytes
              from (
                select e.*, sum(pg_column_size(e.data)) over (order by e.seq ${direction}) - pg_column_size(e.data) as stored
                from tutti.events e
                where e.room_id = r.id and e.seq > page.low and e.seq < page.high
              ) e where e.stored < ${STORED_BYTES}
            ) e where e.bytes < ${PAGE_BYTES}
          ) e on true
          where r.tenant_id = ${tenant} and r.name = ${room}
          order by e.seq ${direction}`;
      });
      const [first] = rows;
      if (!first) return undefined;
      const { epoch, head, floor } = first;
      const events = rows.flatMap(({ seq, mid, type, data, by, at }) =>
        seq === null ? [] : [{ room, epoch, seq, mid, type, data, by, at }],
      );
      return { epoch, head, floor, events };
    },

    list: (tenant, cursor, limit) =>
      database.withTenants(
        [tenant],
        (tx) => tx<RoomSummary[]>`
          select ${summaryOf(tx)} from tutti.rooms
          where tenant_id = ${tenant} and name > ${cursor ?? ''} order by name limit ${limit}`,
      ),

    summary: (tenant, room) =>
      database.withTenants([tenant], async (tx) => {
        const [found] = await tx<RoomSummary[]>`
          select ${summaryOf(tx)} from tutti.rooms where tenant_id = ${tenant} and name = ${room}`;
        return found;
      }),

    async erase(tenant, room) {
      // Runs before rooms, as everywhere: a run that ends at this moment holds its own row and waits for the room's.
      const gone = await database.withTenants([tenant], async (tx) => {
        await tx`select u.id from tutti.runs u join tutti.rooms r on r.id = u.room_id
          where r.tenant_id = ${tenant} and r.name = ${room} order by u.id for update of u`;
        return tx`delete from tutti.rooms where tenant_id = ${tenant} and name = ${room} returning id`;
      });
      return gone.length > 0;
    },
  };
}

const summaryOf = (tx: Tx) =>
  tx`name as room, epoch, head, floor, floor(extract(epoch from created_at) * 1000)::bigint as "createdAt"`;

/** A connection of its own for a lane. A batch that gets no answer is given up early enough to be sent once more. */
function commitOver(database: Database, limits: AppendLimits): Commit {
  const line = database.dedicated();
  const answerMs = Math.max(100, limits.timeoutMs / 2);
  return async (events) => {
    try {
      return await line.run(answerMs, (sql) => appendBatch(sql, events, database.cluster));
    } catch (error) {
      await database.cluster.heed(error, line);
      throw error;
    }
  };
}
