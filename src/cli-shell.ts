import { randomBytes } from 'node:crypto';
import { createRedisBus } from './bus/redis.js';
import { type Config, readConfig } from './config.js';
import type { Directory } from './core/directory.js';
import { type RoomKey, systemKey } from './core/keys.js';
import type { EventLog } from './core/log.js';
import type { Logger, Metrics } from './core/telemetry.js';
import { type Database, openDatabase } from './db/database.js';
import { createDirectory } from './db/directory.js';
import { embeddedUrl } from './db/embedded.js';
import { advanceEpochs } from './db/epochs.js';
import { createEventLog } from './db/event-log.js';
import { migrate } from './db/migrate.js';

/** What went wrong, in words for the person at the shell. */
export class ShellError extends Error {
  override readonly name = 'ShellError';
}

/** What a command of the shell works with. */
export interface Shell {
  config: Config;
  directory: Directory;
  log: EventLog;
  /** Gives the rooms of a tenant, or of all, other epochs. @returns how many rooms. */
  advanceEpochs(tenant: string | undefined): Promise<number>;
  /** Tells gateways over Redis to look at once; without Redis they find out by themselves in some seconds. */
  announce(key: RoomKey, what: string): Promise<void>;
}

const silent: Logger = { debug() {}, info() {}, warn() {}, error() {} };
const unmeasured: Metrics = { add() {}, observe() {}, gauge() {} };
const ANNOUNCE_WAIT_MS = 500;
const EPOCHS_TIMEOUT_MS = 600_000;

/** Gateways read their revocations when they hear this. */
export const revocationsKey = systemKey('*', 'revocations');

/**
 * Opens the database for one command: DATABASE_URL, else the embedded Postgres that runs for TUTTI_DATA_DIR. The schema is
 * brought up to date, so that an installation can be prepared before its first gateway starts.
 * @throws ShellError where there is no database to work on
 */
export async function withShell<T>(work: (shell: Shell) => Promise<T>): Promise<T> {
  const config = shellConfig();
  const url = config.DATABASE_URL ?? embeddedUrl(config.TUTTI_DATA_DIR);
  if (url === undefined) {
    throw new ShellError(
      `No Postgres runs for the data directory ${config.TUTTI_DATA_DIR}. Start the gateway first ("npm start"), or set ` +
        'DATABASE_URL, or TUTTI_DATA_DIR where the gateway has another one.',
    );
  }
  const { TUTTI_DB_APP_ROLE: appRole, TUTTI_DB_FAILOVER: failover } = config;
  const database = await openDatabase({ url, poolSize: 2, appRole, failover });
  try {
    await migrate(database);
    await database.cluster.settle();
    return await work({
      config,
      directory: createDirectory(database),
      log: logOf(database, config),
      advanceEpochs: (tenant) => database.asOwner(EPOCHS_TIMEOUT_MS, (sql) => advanceEpochs(sql, tenant)),
      announce: (key, what) => announce(config, key, what),
    });
  } finally {
    await database.close();
  }
}

/** The shell also manages production installations whose Postgres is only reached by the data directory: it checks that itself. */
function shellConfig(): Config {
  const { NODE_ENV, ...env } = process.env;
  return { ...readConfig(env), production: NODE_ENV === 'production' };
}

const logOf = (database: Database, config: Config): EventLog =>
  createEventLog(
    database,
    {
      lanes: 1,
      batchMax: config.TUTTI_APPEND_BATCH_MAX,
      lingerMs: 0,
      queueMax: 1,
      queueBytes: 1,
      timeoutMs: config.TUTTI_APPEND_TIMEOUT_MS,
    },
    unmeasured,
    silent,
  );

async function announce(config: Config, key: RoomKey, what: string): Promise<void> {
  if (!config.REDIS_URL) return;
  const bus = await createRedisBus({
    url: config.REDIS_URL,
    cluster: config.TUTTI_REDIS_CLUSTER ?? false,
    prefix: config.TUTTI_REDIS_PREFIX,
    nodeId: `cli-${randomBytes(4).toString('hex')}`,
    log: silent,
    metrics: unmeasured,
  });
  bus.announce(key, { kind: 'hint', key: what, frame: '' });
  await new Promise((done) => setTimeout(done, ANNOUNCE_WAIT_MS));
  await bus.close();
}
