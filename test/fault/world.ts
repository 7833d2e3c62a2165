import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import postgres from 'postgres';
import { type PostgresServer, startPostgres } from '../support/postgres.js';
import { type RedisServer, startRedis } from '../support/redis.js';
import { type Disk, mountDisk } from './world-disk.js';
import { Seat } from './world-seat.js';
import { makeTenants, type WorldTenant } from './world-tenants.js';

export interface WorldOptions {
  gateways: number;
  tenants: number;
  roomsPerTenant: number;
  /** Bytes of the disk Postgres stands on, where this machine can make one. */
  diskBytes: number;
  /** Where gateways' logs go. */
  directory: string;
}

/** A whole installation of real processes, with faults in reach. */
export interface World {
  readonly postgres: PostgresServer;
  /** `undefined` where `noDisk` says why. */
  readonly disk: Disk | undefined;
  readonly noDisk: string | undefined;
  readonly redis: RedisServer;
  readonly seats: readonly Seat[];
  readonly tenants: readonly WorldTenant[];
  /** Work as superuser, on a connection of its own that passes no proxy. */
  asSuperuser<T>(work: (sql: postgres.Sql) => PromiseLike<T>): Promise<T>;
  /** Resolves once Postgres takes writes; starts it where it ended by itself. */
  postgresBack(): Promise<void>;
  /** Ends every process of it, in whatever state they are. */
  end(): Promise<void>;
}

const POSTGRES_BACK_MS = 60_000;
/** What may wait for a reader at a gateway: so little that one who does not read is closed within the seconds a fault lasts. */
const READER_BYTES = 512 * 1024;

/**
 * Starts servers, tenants and gateways. What was started ends with this process, also by SIGKILL.
 * @throws Error where a part does not start; then nothing is left.
 */
export async function startWorld(options: WorldOptions): Promise<World> {
  mkdirSync(options.directory, { recursive: true });
  const ends: (() => unknown)[] = [];
  const end = async () => {
    for (const one of ends.splice(0).reverse()) await Promise.resolve(one()).catch(() => undefined);
  };
  try {
    const disk = mountDisk(options.diskBytes);
    const mounted = typeof disk === 'string' ? undefined : disk;
    if (mounted) ends.push(() => mounted.remove());
    const server = await startPostgres({
      settings: { shared_buffers: '128MB', max_wal_size: '256MB', checkpoint_timeout: '60s' },
      ...(mounted ? { directory: mounted.directory } : {}),
    });
    ends.push(() => server.destroy());
    const redis = await startRedis();
    ends.push(() => redis.stop());
    const tenants = await makeTenants(server.url, options.tenants, options.roomsPerTenant);
    const seats: Seat[] = [];
    for (let n = 1; n <= options.gateways; n++) {
      const seat = await Seat.prepare({
        name: `g${n}`,
        postgresUrl: server.url,
        redisUrl: redis.url,
        env: { TUTTI_REDIS_PREFIX: 'torture:', TUTTI_SOCKET_MAX_BACKPRESSURE_BYTES: String(READER_BYTES) },
        logFile: join(options.directory, `g${n}.log`),
      });
      ends.push(() => seat.close());
      seats.push(seat);
    }
    await Promise.all(seats.map((seat) => seat.start()));
    const asSuperuser: World['asSuperuser'] = async (work) => {
      const sql = postgres(server.url, {
        max: 1,
        connect_timeout: 5,
        onnotice: () => undefined,
        connection: { default_transaction_read_only: false },
      });
      try {
        return await work(sql);
      } finally {
        await sql.end({ timeout: 1 }).catch(() => undefined);
      }
    };
    return {
      postgres: server,
      disk: mounted,
      noDisk: typeof disk === 'string' ? disk : undefined,
      redis,
      seats,
      tenants,
      asSuperuser,
      postgresBack: () => postgresBack(server, asSuperuser),
      end,
    };
  } catch (error) {
    await end();
    throw error;
  }
}

async function postgresBack(server: PostgresServer, asSuperuser: World['asSuperuser']): Promise<void> {
  for (const deadline = Date.now() + POSTGRES_BACK_MS; ; ) {
    try {
      await server.start();
      await asSuperuser((sql) => sql`select pg_logical_emit_message(true, 'torture', 'a write')`);
      return;
    } catch (error) {
      if (Date.now() > deadline) throw error;
      await sleep(100);
    }
  }
}
