import { pathToFileURL } from 'node:url';
import postgres from 'postgres';

/** A change of a gateway's program, as it is loaded: of `find`, which has to be there, in `src/` and `dist/` alike. */
export interface Plant {
  /** Below `src/`, without the ending. */
  module: string;
  find: string;
  put: string;
}

/** A change of the functions in the database, made once a gateway has migrated it. */
export interface DatabasePlant {
  function: string;
  changes: readonly { find: string; put: string }[];
  /** Run first. */
  sql?: string;
}

const PRELOAD = pathToFileURL(`${import.meta.dirname}/plant.mjs`).href;

/** The environment of a gateway with these faults in it. */
export const planted = (plants: readonly Plant[]): Record<string, string> =>
  plants.length === 0 ? {} : { NODE_OPTIONS: `--import ${PRELOAD}`, PLANTED: JSON.stringify(plants) };

/** @throws Error where the function is not as the fault expects it. */
export async function plantInDatabase(url: string, plant: DatabasePlant): Promise<void> {
  const sql = postgres(url, { max: 1, onnotice: () => undefined });
  try {
    if (plant.sql) await sql.unsafe(plant.sql);
    const [row] = await sql<{ text: string }[]>`select pg_get_functiondef(${plant.function}::regproc) as text`;
    let text = row?.text ?? '';
    for (const { find, put } of plant.changes) {
      if (!text.includes(find)) throw new Error(`${plant.function} has no "${find}"`);
      text = text.replace(find, () => put);
    }
    await sql.unsafe(text);
  } finally {
    await sql.end({ timeout: 1 });
  }
}

/** Commits are answered before they are on disk. */
export const noSync: DatabasePlant = {
  function: 'tutti.append_events',
  changes: [
    {
      find: "perform set_config('synchronous_commit', 'on', true)",
      put: "perform set_config('synchronous_commit', 'off', true)",
    },
  ],
};

/** A retry is stored once more. */
export const noDedupe: DatabasePlant = {
  sql: 'drop index tutti.events_mid',
  function: 'tutti.append_events',
  changes: [
    {
      find: 'on e.room_id = b.room_id and e.mid = b.mid',
      put: 'on e.room_id = b.room_id and e.mid = b.mid and false',
    },
  ],
};

/**
 * Numbers are handed out ahead of the commits, as by a sequence with a cache: the one before a server's event is kept back for
 * the next event of a server. Servers of a load wait for the answer to one event before they send another.
 */
export const numbersAhead: DatabasePlant = {
  function: 'tutti.append_events',
  changes: [
    {
      find: 'f.head + row_number() over (partition by f.room_id order by f.ordinal) as seq',
      put: `case
          when f.server is null or f.place < f.server then f.head + f.place
          when k.kept is null then f.head + f.place + (f.head < 120)::integer
          when f.place = f.server then k.kept
          else f.head + f.place - 1
        end as seq`,
    },
    {
      find: 'from fresh f where f.nth = 1',
      put: `from (
          select f.*, min(f.place) filter (where f.publisher ->> 'kind' = 'server') over (partition by f.room_id) as server
          from (select *, row_number() over (partition by room_id order by ordinal) as place from fresh where nth = 1) f
        ) f
        left join lateral (
          select n as kept from generate_series(1, f.head) n
          where f.server is not null and not exists (select from tutti.events e where e.room_id = f.room_id and e.seq = n)
          limit 1
        ) k on true`,
    },
    { find: 'set head = n.head', put: 'set head = greatest(r.head, n.head)' },
  ],
};

/** Events are acknowledged inside a transaction that is committed much later: not before the crash, also where everything is slow. */
export const ackBeforeCommit: Plant = {
  module: 'db/event-log',
  find: 'return await line.run(answerMs, (sql) => appendBatch(sql, events, database.cluster));',
  put: `return await line.run(answerMs, async (sql) => {
    if (!line.isOpen) {
      line.isOpen = true;
      await sql.unsafe('begin');
      setTimeout(() => {
        line.isOpen = false;
        sql.unsafe('commit').catch(() => undefined);
      }, 5000);
    }
    return appendBatch(sql, events, database.cluster);
  });`,
};

/** One connection for all appends, so that a transaction that is left open locks nobody out. */
export const oneLane: Plant = {
  module: 'db/event-log',
  find: 'Array.from({ length: limits.lanes }',
  put: 'Array.from({ length: 1 }',
};

/** A reader follows the room while its replay is still being read. */
export const noHandoverBuffer: Plant = {
  module: 'core/feed',
  find: 'void this.#replay(viewer, replay);',
  put: `void this.#replay(viewer, replay);
    this.#live.add(viewer);
    viewer.follow(this.key);`,
};

/** What the bus loses is never looked for. */
export const noRepair: Plant = {
  module: 'core/feed',
  find: 'if (seq <= this.#head || this.#closed) return;',
  put: 'return;',
};

/** A replay begins one event too late. */
export const lateReplay: Plant = {
  module: 'core/feed',
  find: 'start.position.seq,',
  put: 'start.position.seq + 1,',
};

/** What is announced in a room reaches the rooms of that name of all tenants. */
export const leakyBus: Plant = {
  module: 'bus/redis',
  find: 'this.listener(room, message);',
  put: `for (const other of this.subscriptions.keys()) {
      if (other.slice(other.indexOf(':')) === room.slice(room.indexOf(':'))) this.listener(other, message);
    }`,
};

/** Sockets follow rooms by their names alone. */
export const leakyTopics: Plant = {
  module: 'realtime/viewer',
  find: 'export const topicOf =',
  put: "export const topicOf = (room) => wholeTopicOf(room.slice(room.indexOf(':') + 1)); const wholeTopicOf =",
};

/** A worker that lost a run may write to it as long as another holds it at this gateway. */
export const noFence: Plant = {
  module: 'core/run-writers',
  find: 'if (known.fence > fence) throw fenced();',
  put: '',
};

/** The events of a tenant that wait for a commit are taken newest first. */
export const newestFirst: Plant = {
  module: 'db/append-queue',
  find: 'const waiting = room?.events.shift();',
  put: `const all = [];
    while (room?.events.size > 0) all.push(room.events.shift());
    const waiting = all.pop();
    for (const one of all) room.events.push(one);`,
};

/** Every twentieth publish is refused, and for good. */
export const refusesSome: Plant = {
  module: 'core/rooms',
  find: "const tenant = requireRight(principal, room, 'publish');",
  put: `const tenant = requireRight(principal, room, 'publish');
    globalThis.asked = (globalThis.asked ?? 0) + 1;
    if (globalThis.asked % 20 === 0) throw new TuttiError('quota_exceeded', 'Planted.');`,
};

/** Whoever comes back and has missed something is told to start over. */
export const needlessResync: Plant = {
  module: 'core/feed',
  find: "if (from.seq < this.#floor) return 'position_too_old';",
  put: "if (from.seq < this.#head) return 'position_too_old';",
};

/** Whoever comes back is put at the newest event, and told that it goes on from where it was. */
export const skippingResume: Plant = {
  module: 'core/feed',
  find: ': { position: from, resumed: true, head: this.#head };',
  put: ': { position: latest, resumed: true, head: this.#head };',
};

/** Readers whose log became another one are told a place one event too far. */
export const resyncTooFar: Plant = {
  module: 'core/feed',
  find: 'reason, position: this.position });',
  put: 'reason, position: { epoch: this.#epoch, seq: this.#head + 1 } });',
};

/** Readers whose log became another one are not told. */
export const noResync: Plant = {
  module: 'core/feed',
  find: 'const frame = this.#resyncFrame(reason); this.#deps.outlet.publish(this.key, frame);',
  put: 'const frame = this.#resyncFrame(reason);',
};
