import { randomBytes } from 'node:crypto';
import { z } from 'zod';

/*
 * The only reader of process.env. Every variable, its default and its meaning stand here once; the table in
 * docs/CONFIGURATION.md is generated from this schema.
 */

const int = (fallback: number, min: number, max: number, description: string) =>
  z.coerce.number().int().min(min).max(max).default(fallback).describe(description);
const text = (description: string) => z.string().min(1).optional().describe(description);
const flag = (description: string) =>
  z
    .enum(['true', 'false'])
    .transform((value) => value === 'true')
    .optional()
    .describe(description);
const url = (protocols: RegExp, description: string) =>
  z.url({ protocol: protocols, error: 'is not a URL of the expected kind' }).optional().describe(description);

const MiB = 1024 * 1024;

/** Of a URL that may name several hosts, which are no URL otherwise. */
function protocolOf(value: string): string {
  const single = value.replace(/^([a-z]+:\/\/(?:[^@/?#]*@)?[^,/?#]*)[^/?#]*/, '$1');
  return URL.canParse(single) ? new URL(single).protocol : '';
}

export const environment = z.object({
  NODE_ENV: z
    .string()
    .default('development')
    .describe(
      '`production` switches everything of the tenant `demo` off and demands the database rights described in docs/ARCHITECTURE.md.',
    ),
  PORT: int(3000, 0, 65535, 'TCP port of HTTP and sockets; several processes may share one port.'),
  HOST: z.string().default('127.0.0.1').describe('Address to listen on.'),
  DATABASE_URL: z
    .string()
    .refine((value) => /^postgres(ql)?:$/.test(protocolOf(value)), { error: 'is not a URL of the expected kind' })
    .optional()
    .describe(
      'Postgres 14 or newer. Several servers of one installation: `postgres://user@a:5432,b:5432/database`; the one that is the primary is used. Unset: an embedded Postgres in the data directory.',
    ),
  REDIS_URL: url(/^rediss?$/, 'Redis 7 or newer, or Valkey. Unset: this is the only gateway.'),
  TUTTI_REDIS_CLUSTER: flag('`true` where REDIS_URL names a node of a Redis Cluster.'),
  TUTTI_REDIS_PREFIX: z
    .string()
    .max(64)
    .default('')
    .describe('Put before every Redis channel, to let installations share one Redis.'),
  TUTTI_DATA_DIR: z
    .string()
    .min(1)
    .default('./.tutti')
    .describe('Where the embedded Postgres and the development secrets live.'),
  TUTTI_NODE_ID: z
    .string()
    .regex(/^[A-Za-z0-9_-]{1,12}$/, 'must be 1-12 of [A-Za-z0-9_-]')
    .optional()
    .describe('Name of this gateway, unique among gateways. Default: random.'),
  LOG_LEVEL: z
    .enum(['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'])
    .default('info')
    .describe('Least severe log line written.'),
  TUTTI_ALLOWED_ORIGINS: z
    .string()
    .default('')
    .describe(
      "Comma-separated origins whose pages may open sockets, or `*`. Pages of the gateway's own origin and clients without an Origin always may.",
    ),

  TUTTI_DEV_SECRET: text(
    'HS256 secret of the issuer `tutti-dev`, at least 32 bytes. Default: random, kept in the data directory. Ignored in production.',
  ),
  TUTTI_DEV_SERVER_KEY: text(
    'Server key of the tenant `demo`. Default: random, kept in the data directory. Ignored in production.',
  ),
  TUTTI_DEV_WORKER_KEY: text(
    'Worker key of the tenant `demo`. Default: random, kept in the data directory. Ignored in production.',
  ),
  TUTTI_DEMO_WORKER: flag('Start the demo worker with the gateway. Default: `true` outside production.'),
  OPENAI_BASE_URL: url(
    /^https?$/,
    'The demo worker streams from this OpenAI-compatible server, for example `http://127.0.0.1:11434/v1`.',
  ),
  OPENAI_API_KEY: text('Sent to OPENAI_BASE_URL as a bearer token.'),
  OPENAI_MODEL: text('Model to ask OPENAI_BASE_URL for.'),

  TUTTI_DB_FAILOVER: z
    .enum(['any', 'synchronous'])
    .default('any')
    .describe(
      'What is promoted when Postgres fails over. `synchronous`: only standbys that have all that was acknowledged, so that readers keep their positions. `any`: readers start over after a promotion. The same on all gateways.',
    ),
  TUTTI_DB_POOL_SIZE: int(10, 2, 200, 'Postgres connections of one gateway, beside one per append lane.'),
  TUTTI_DB_WAITING_MAX: int(
    10_000,
    1,
    1_000_000,
    'Transactions waiting for one of these connections before further ones are refused with `overloaded`; three quarters of it for one tenant.',
  ),
  TUTTI_DB_APP_ROLE: z
    .string()
    .regex(/^[a-z_][a-z0-9_]{0,62}$/, 'must be a plain role name')
    .default('tutti_app')
    .describe('Role the application works as; made by the migrations.'),

  TUTTI_SOCKET_MAX_PAYLOAD_BYTES: int(
    256 * 1024,
    80 * 1024,
    16 * MiB,
    'Largest message a client may send, in bytes; a larger one closes the socket.',
  ),
  TUTTI_SOCKET_MAX_BACKPRESSURE_BYTES: int(
    2 * MiB,
    64 * 1024,
    64 * MiB,
    'Bytes a socket may have waiting before it is closed as a slow reader.',
  ),
  TUTTI_SOCKET_PING_INTERVAL_MS: int(10_000, 1000, 60_000, 'Time between heartbeats, in ms.'),
  TUTTI_SOCKET_PING_TIMEOUT_MS: int(8_000, 1000, 60_000, 'Time a client has to answer a heartbeat, in ms.'),
  TUTTI_CONNECT_TIMEOUT_MS: int(10_000, 500, 60_000, 'Time a socket has to present its token, in ms.'),
  TUTTI_CONNECTIONS_TIME_PERCENT: int(
    30,
    1,
    100,
    'Of the time of one gateway that sockets may take while they open, enter and close: in a storm they wait for each other, and the sessions that are there go on.',
  ),
  TUTTI_HTTP_MAX_BODY_BYTES: int(
    256 * 1024,
    80 * 1024,
    16 * MiB,
    'Largest HTTP request body, in bytes; a stream of chunks may be longer, its lines may not.',
  ),
  TUTTI_HTTP_MAX_CONNECTIONS: int(
    20_000,
    1,
    1_000_000,
    'TCP connections of one gateway that are no WebSocket, those of streams and those that ask nothing among them; further ones are closed.',
  ),
  TUTTI_HTTP_MAX_REQUESTS: int(
    2000,
    1,
    1_000_000,
    'HTTP requests one gateway serves at a time; further ones are refused with `overloaded`. Streams, claims and open bodies of workers count as sessions instead.',
  ),
  TUTTI_MAX_CONNECTIONS: int(100_000, 1, 1_000_000, 'Sockets of one gateway.'),
  TUTTI_MAX_CONNECTIONS_PER_TENANT: int(50_000, 1, 1_000_000, 'Sessions of one tenant on one gateway.'),
  TUTTI_MAX_SESSIONS_PER_USER: int(100, 1, 100_000, 'Sessions of one user on one gateway.'),
  TUTTI_MAX_ROOMS_PER_SESSION: int(100, 1, 10_000, 'Rooms one session may have joined.'),
  TUTTI_MAX_ROOMS_OPEN: int(
    200_000,
    1,
    10_000_000,
    'Rooms open on one gateway: those with a reader, or with one a moment ago.',
  ),
  TUTTI_MAX_ROOMS_OPEN_PER_TENANT: int(100_000, 1, 10_000_000, 'The same of one tenant.'),
  TUTTI_IN_FLIGHT_PER_SESSION: int(
    1000,
    1,
    100_000,
    'Commands of one session, or requests of one user or key, that may wait for their answer; further ones are refused with `overloaded`.',
  ),
  TUTTI_IN_FLIGHT_BYTES_PER_SESSION: int(16 * MiB, 1024, 1024 * MiB, 'The same in bytes.'),
  TUTTI_IN_FLIGHT_BYTES_PER_TENANT: int(
    128 * MiB,
    1024,
    65_536 * MiB,
    'The same in bytes, of all sessions and requests of one tenant on one gateway.',
  ),
  TUTTI_COMMANDS_PER_SECOND: int(100, 1, 1_000_000, 'Commands per second of one session; twice as many in a burst.'),
  TUTTI_TENANT_COMMANDS_PER_SECOND: int(
    10_000,
    1,
    10_000_000,
    'Commands per second of one tenant on one gateway; twice as many in a burst.',
  ),
  TUTTI_TENANT_PUBLISHES_PER_SECOND: int(
    1000,
    1,
    10_000_000,
    'Events that one tenant may publish a second through one gateway, over sockets and HTTP; a quarter as many at once.',
  ),
  TUTTI_WORKER_COMMANDS_PER_SECOND: int(
    5000,
    1,
    1_000_000,
    'Commands per second of one connection of a worker; twice as many in a burst.',
  ),
  TUTTI_TENANT_WORKER_COMMANDS_PER_SECOND: int(
    50_000,
    1,
    10_000_000,
    'Commands per second of all connections of workers of one tenant on one gateway; twice as many in a burst.',
  ),
  TUTTI_MEMORY_MAX_PERCENT: int(
    85,
    1,
    100,
    'Part of the JavaScript heap, or of the memory of the machine or container, in use from which on new sessions and joins are refused with `overloaded`.',
  ),

  TUTTI_APPEND_LANES: int(
    4,
    1,
    64,
    'Batches of events committed at the same time. One tenant has one of them, and further ones, but for the last, where its events fill one or wait.',
  ),
  TUTTI_APPEND_BATCH_MAX: int(64, 1, 1000, 'Events in one commit.'),
  TUTTI_APPEND_LINGER_MS: int(2, 0, 100, 'How long a commit waits for company, in ms.'),
  TUTTI_APPEND_QUEUE_MAX: int(
    10_000,
    1,
    1_000_000,
    'Events waiting for a commit before publishes are refused with `overloaded`; three quarters of it for one tenant.',
  ),
  TUTTI_APPEND_QUEUE_BYTES: int(64 * MiB, 64 * 1024, 16_384 * MiB, 'The same in UTF-16 characters.'),
  TUTTI_APPEND_TIMEOUT_MS: int(
    8_000,
    100,
    120_000,
    'How long a publish may wait for its commit before `log_unavailable`, in ms.',
  ),

  TUTTI_RING_BYTES_PER_ROOM: int(
    MiB,
    16 * 1024,
    256 * MiB,
    'Recent events of an open room kept in memory, in UTF-16 characters; as much again for events that wait for an earlier one.',
  ),
  TUTTI_RING_BYTES_TOTAL: int(
    256 * MiB,
    MiB,
    65_536 * MiB,
    'The same over all rooms of a gateway; the oldest are dropped first.',
  ),
  TUTTI_GAP_REPAIR_MS: int(50, 1, 5000, 'How long a gap may wait for its event before it is read from the log, in ms.'),
  TUTTI_HEAD_CHECK_MS: int(1000, 100, 2000, 'How often the heads of open rooms are compared with the log, in ms.'),
  TUTTI_ROOM_LINGER_MS: int(10_000, 0, 600_000, 'How long a room stays open after its last reader left, in ms.'),
  TUTTI_REPLAY_BUFFER_BYTES: int(
    MiB,
    16 * 1024,
    64 * MiB,
    'Pushes kept for one reader while its replay runs, in UTF-16 characters. Past that output of runs comes in pages; a reader that lacks more broadcasts is closed as slow.',
  ),

  TUTTI_RUN_LEASE_MS: int(
    15_000,
    1000,
    600_000,
    'How long a worker may be silent before its run is given to another, in ms. Greater than TUTTI_SOCKET_PING_INTERVAL_MS, where workers leave their heartbeat to the socket.',
  ),
  TUTTI_RUN_COMMIT_MS: int(250, 10, 5000, 'How often run output is committed, in ms.'),
  TUTTI_RUN_SEGMENT_BYTES: int(
    16 * 1024,
    1024,
    MiB,
    'Uncommitted output of a run that is committed at once, in bytes.',
  ),
  TUTTI_RUN_UNCOMMITTED_MAX_BYTES: int(
    256 * 1024,
    16 * 1024,
    16 * MiB,
    'Uncommitted output of a run before its worker is made to wait, in bytes.',
  ),
  TUTTI_RUN_UNCOMMITTED_TOTAL_BYTES: int(
    64 * MiB,
    16 * 1024,
    16_384 * MiB,
    'Uncommitted output of all runs of one gateway before pushes are refused with `overloaded`, in bytes.',
  ),
  TUTTI_RUN_OUTPUT_MAX_BYTES: int(512 * 1024, 1024, 16 * MiB, 'Folded output of one run, in bytes.'),
  TUTTI_RUN_MAX_ATTEMPTS: int(3, 1, 20, 'How often a run is tried.'),
  TUTTI_RUN_QUEUE_TTL_MS: int(
    600_000,
    1000,
    86_400_000,
    'How long a run may wait for a worker before it is `expired`, in ms.',
  ),
  TUTTI_RUN_DURATION_MAX_MS: int(1_800_000, 1000, 86_400_000, 'How long one attempt may take, in ms.'),
  TUTTI_RUN_SWEEP_MS: int(1000, 100, 5000, 'How often lost leases are looked for, in ms.'),
  TUTTI_RUNS_LIVE_PER_TENANT: int(1000, 1, 1_000_000, 'Queued and running runs of one tenant.'),
  TUTTI_RUNS_LIVE_PER_ROOM: int(
    100,
    1,
    10_000,
    'Queued and running runs of one room; who joins gets all of their output so far.',
  ),
  TUTTI_CLAIMS_WAITING_MAX: int(10_000, 1, 1_000_000, 'Workers that may wait for a run at one gateway.'),

  TUTTI_TOKEN_TTL_MAX_SECONDS: int(86_400, 60, 31_536_000, 'Longest life a token may have, in seconds.'),
  TUTTI_TOKEN_GRACE_MS: int(25_000, 0, 300_000, 'How long a session outlives its token, in ms.'),
  TUTTI_TOKEN_NOTICE_MS: int(60_000, 0, 3_600_000, 'How long before its token ends a session is told, in ms.'),
  TUTTI_REVOCATION_POLL_MS: int(
    5000,
    100,
    60_000,
    'How often revocations and changed tenants, issuers and keys are read, in ms.',
  ),
  TUTTI_DRAIN_TIMEOUT_MS: int(15_000, 0, 600_000, 'Grace period after SIGTERM, in ms.'),
  TUTTI_DRAIN_NOTICE_MS: int(
    0,
    0,
    300_000,
    'How long after SIGTERM `/readyz` fails before clients are asked to move and the port is closed, in ms; part of the grace period, at most half of it. Behind a balancer as long as that takes to notice.',
  ),
});

export type Environment = z.output<typeof environment>;

/** A configuration that was checked: what `environment` parsed to, with the node id filled in. */
export interface Config extends Environment {
  TUTTI_NODE_ID: string;
  production: boolean;
}

/** A variable that cannot be used. The message says which, what it was and what it may be. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
}

const SECRET = /SECRET|KEY|URL/;

/**
 * Reads and cross-checks the configuration. Empty variables count as unset.
 * @throws ConfigError naming every variable that is wrong.
 */
export function readConfig(env: Record<string, string | undefined> = process.env): Config {
  const given = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== undefined && value !== ''));
  const parsed = environment.safeParse(given);
  if (!parsed.success) {
    const lines = parsed.error.issues.map((issue) => {
      const name = String(issue.path[0]);
      const value = SECRET.test(name) ? '(hidden)' : JSON.stringify(given[name]);
      return `${name} is ${value}: ${issue.message}`;
    });
    throw new ConfigError(lines.join('\n'));
  }
  const config = parsed.data;
  const production = config.NODE_ENV === 'production';
  if (production && !config.DATABASE_URL) {
    throw new ConfigError('DATABASE_URL is not set: production needs a Postgres of its own, not the embedded one.');
  }
  if (config.TUTTI_DEV_SECRET && Buffer.byteLength(config.TUTTI_DEV_SECRET) < 32) {
    throw new ConfigError('TUTTI_DEV_SECRET is shorter than 32 bytes, the least HS256 is safe with.');
  }
  const { TUTTI_DRAIN_NOTICE_MS: notice, TUTTI_DRAIN_TIMEOUT_MS: grace } = config;
  if (notice * 2 > grace) {
    throw new ConfigError(
      `TUTTI_DRAIN_NOTICE_MS is ${notice}: may be at most half of TUTTI_DRAIN_TIMEOUT_MS, which is ${grace}.`,
    );
  }
  return { ...config, production, TUTTI_NODE_ID: config.TUTTI_NODE_ID ?? randomBytes(6).toString('hex') };
}

const demoWorkerEnvironment = environment
  .pick({ OPENAI_BASE_URL: true, OPENAI_API_KEY: true, OPENAI_MODEL: true })
  .extend({ TUTTI_URL: z.url(), TUTTI_WORKER_KEY: z.string().min(1) });

/**
 * What the demo worker's process gets from its parent, beside the variables of the model server.
 * @throws ConfigError naming every variable that is wrong.
 */
export function readDemoWorkerConfig(
  env: Record<string, string | undefined> = process.env,
): z.infer<typeof demoWorkerEnvironment> {
  const given = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== ''));
  const parsed = demoWorkerEnvironment.safeParse(given);
  if (parsed.success) return parsed.data;
  throw new ConfigError(parsed.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`).join('\n'));
}
