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
  find: string;
  put: string;
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
    const changed = row?.text.replace(plant.find, () => plant.put);
    if (changed === undefined || changed === row?.text) throw new Error(`${plant.function} has no "${plant.find}"`);
    await sql.unsafe(changed);
  } finally {
    await sql.end({ timeout: 1 });
  }
}

/** Commits are answered before they are on disk. */
export const noSync: DatabasePlant = {
  function: 'tutti.append_events',
  find: "perform set_config('synchronous_commit', 'on', true)",
  put: "perform set_config('synchronous_commit', 'off', true)",
};

/** A retry is stored once more. */
export const noDedupe: DatabasePlant = {
  sql: 'drop index tutti.events_mid',
  function: 'tutti.append_events',
  find: 'on e.room_id = b.room_id and e.mid = b.mid',
  put: 'on e.room_id = b.room_id and e.mid = b.mid and false',
};

/** Events are acknowledged inside a transaction that is committed later. */
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
      }, 500);
    }
    return appendBatch(sql, events, database.cluster);
  });`,
};

/** A reader follows the room while its replay is still being read. */
export const noHandoverBuffer: Plant = {
  module: 'core/feed',
  find: 'if (!this.#advance(viewer, replay)) void this.#replay(viewer, replay);',
  put: `this.#live.add(viewer);
    viewer.follow(this.key);
    if (!this.#advance(viewer, replay)) void this.#replay(viewer, replay);`,
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
  find: 'cursor: start.position.seq,',
  put: 'cursor: start.position.seq + 1,',
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
