import postgres from 'postgres';
import { between } from '../../support/random.js';
import { type Fault, peopled, type Stage } from './fault.js';

const SURVIVES = 'Publishes are refused or answered late; nothing acknowledged is lost (LOG1, LOG4).';
const ANSWERED = 'Publishes are answered late or refused, none twice (LOG3).';
const nothing = async () => undefined;

/** Connections of gateways, as Postgres sees them. */
const terminateAll = ({ world }: Stage) =>
  world.asSuperuser(
    (sql) => sql`select pg_terminate_backend(pid) from pg_stat_activity
      where pid <> pg_backend_pid() and backend_type = 'client backend'`,
  );

const readOnly = ({ world }: Stage, on: boolean) =>
  world.asSuperuser(async (sql) => {
    await sql.unsafe(`alter system set default_transaction_read_only = ${on ? 'on' : 'off'}`);
    await sql`select pg_reload_conf()`;
  });

/** Locks every room, on a connection of its own. @returns what lets go. */
async function lockRooms({ world }: Stage): Promise<() => Promise<void>> {
  const sql = postgres(world.postgres.url, { max: 1, connect_timeout: 5, onnotice: () => undefined });
  const line = await sql.reserve();
  await line`begin`;
  await line`select id from tutti.rooms order by id for update`;
  return async () => {
    await line`rollback`.catch(() => undefined);
    line.release();
    await sql.end({ timeout: 1 });
  };
}

export const postgresFaults: Fault[] = [
  {
    kind: 'postgres-kill',
    part: 'postgres',
    aloneEvery: 4,
    weight: 2,
    lasts: [200, 2000],
    promise: SURVIVES,
    async inject({ world }) {
      await world.postgres.kill9();
      return { target: 'postgres', heal: () => world.postgresBack() };
    },
  },
  {
    kind: 'postgres-cut',
    part: 'postgres',
    weight: 2,
    lasts: [0, 0],
    promise: 'Connections lost in mid-transaction: what was not answered is sent again under its mid (LOG3, LOG4).',
    async inject({ world }) {
      for (const { postgres } of world.seats) postgres.drop();
      return { target: 'links to postgres', heal: nothing };
    },
  },
  {
    kind: 'postgres-terminate',
    part: 'postgres',
    weight: 2,
    lasts: [0, 0],
    promise: 'Backends ended in mid-transaction: what was not answered is sent again under its mid (LOG3, LOG4).',
    async inject(stage) {
      await terminateAll(stage);
      return { target: 'postgres', heal: nothing };
    },
  },
  {
    kind: 'postgres-lock',
    part: 'postgres',
    weight: 2,
    lasts: [1000, 4000],
    promise: ANSWERED,
    async inject(stage) {
      return { target: 'tutti.rooms', heal: await lockRooms(stage) };
    },
  },
  {
    kind: 'postgres-slow',
    part: 'postgres',
    weight: 2,
    lasts: [1500, 4000],
    promise: ANSWERED,
    async inject({ world }, { next }) {
      const ms = between(20, 150, next);
      for (const { postgres } of world.seats) postgres.delay(ms);
      return {
        target: `links to postgres +${ms} ms`,
        async heal() {
          for (const { postgres } of world.seats) postgres.heal();
        },
      };
    },
  },
  {
    kind: 'postgres-blackhole',
    part: 'postgres',
    aloneEvery: 4,
    weight: 2,
    lasts: [2000, 6000],
    promise: SURVIVES,
    async inject(stage, draw) {
      const seat = peopled(stage, draw);
      seat.postgres.blackhole();
      return { target: seat.name, heal: async () => seat.postgres.heal() };
    },
  },
  {
    kind: 'postgres-disk-full',
    part: 'postgres',
    aloneEvery: 3,
    weight: 1,
    lasts: [1000, 3000],
    promise: SURVIVES,
    impossible: ({ world }) => world.noDisk,
    async inject({ world }) {
      await world.disk?.fill();
      return {
        target: 'disk of postgres',
        async heal() {
          await world.disk?.free();
          await world.postgresBack();
        },
      };
    },
  },
  {
    kind: 'postgres-read-only',
    part: 'postgres',
    weight: 2,
    lasts: [1000, 3000],
    promise: SURVIVES,
    async inject(stage) {
      await readOnly(stage, true);
      return {
        target: 'postgres',
        async heal() {
          await readOnly(stage, false);
        },
      };
    },
  },
];
