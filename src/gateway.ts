import uWS from 'uWebSockets.js';
import { existsSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { createMemoryBus } from './bus/memory.js';
import { createRedisBus } from './bus/redis.js';
import type { Config } from './config.js';
import { Authenticator } from './core/auth.js';
import type { Bus } from './core/bus.js';
import { every, systemClock } from './core/clock.js';
import { ClockCheck } from './core/clock-check.js';
import type { Directory } from './core/directory.js';
import { Feeds } from './core/feeds.js';
import { roomOf, systemKey } from './core/keys.js';
import { ConnectionLimits, InFlight } from './core/limits.js';
import { MemoryGuard } from './core/memory.js';
import { QueuedRuns } from './core/queued-runs.js';
import { Revocations } from './core/revocations.js';
import { Rooms } from './core/rooms.js';
import { Runs } from './core/runs.js';
import type { Logger } from './core/telemetry.js';
import type { Outlet } from './core/viewer.js';
import { type Database, openDatabase } from './db/database.js';
import { createDirectory } from './db/directory.js';
import { createEventLog, type PostgresLog } from './db/event-log.js';
import { verifyIsolation } from './db/isolation.js';
import { migrate } from './db/migrate.js';
import { queuedRuns } from './db/queued-runs.js';
import { createRunStore } from './db/run-store.js';
import { PlainConnections } from './http/plain-connections.js';
import type { Route } from './http/route.js';
import { mountHttp } from './http/server.js';
import { MAX_DATA_BYTES, MAX_HISTORY_LIMIT } from './protocol/primitives.js';
import { SocketServer } from './realtime/server.js';
import { createMetrics } from './telemetry/metrics.js';

export interface GatewayOptions {
  config: Config;
  /** Of the configured or the embedded Postgres. */
  databaseUrl: string;
  log: Logger;
  /** Called once the schema stands: what it returns is served beside the contract's routes. */
  prepare?: (directory: Directory) => Promise<readonly Route[]>;
}

/** A gateway that serves. */
export interface Gateway {
  /** Where it listens, for example `http://127.0.0.1:3000`. */
  readonly url: string;
  /**
   * Leaves service without losing anything (DRN1): readiness fails, clients move on, what was accepted is committed.
   * Takes no longer than the grace period.
   * @returns `false` where something accepted was left uncommitted because Postgres did not answer in time: nobody was
   * told that it is stored, so those who sent it have it still.
   */
  drain(): Promise<boolean>;
}

/** How often Postgres is asked whether it is there, in ms. */
const PROBE_MS = 2000;
const WEB_DIR = fileURLToPath(new URL('../dist/web', import.meta.url));
/** Clients are told to move within this share of what is left of the grace period after the notice. */
const DISMISS_SHARE = 0.5;
/** What the steps after the last commit take at most, in ms and as a share of what is left. */
const CLOSING_MS = 4000;
const CLOSING_SHARE = 0.5;

/**
 * The composition root: constructs everything, migrates the database, listens.
 * @throws DatabaseSetupError, TuttiError `log_unavailable`, or an Error that says which port is taken.
 */
export async function startGateway({ config, databaseUrl, log, prepare }: GatewayOptions): Promise<Gateway> {
  const metrics = createMetrics();
  const nodeId = config.TUTTI_NODE_ID;
  const database = await openDatabase({
    url: databaseUrl,
    poolSize: config.TUTTI_DB_POOL_SIZE,
    appRole: config.TUTTI_DB_APP_ROLE,
    waitingMax: config.TUTTI_DB_WAITING_MAX,
    failover: config.TUTTI_DB_FAILOVER,
    metrics,
    log,
  });
  const migrated = await migrate(database);
  await database.cluster.settle();
  if (migrated.length > 0) log.info({ migrated }, 'Database migrated');
  await checkIsolation(database, config, log);

  const directory = createDirectory(database);
  const extraRoutes = (await prepare?.(directory)) ?? [];
  const revocations = new Revocations({
    directory,
    log,
    pollMs: config.TUTTI_REVOCATION_POLL_MS,
    tokenLifeMs: config.TUTTI_TOKEN_TTL_MAX_SECONDS * 1000,
  });
  const clockCheck = new ClockCheck({ time: () => directory.time(), pollMs: config.TUTTI_REVOCATION_POLL_MS, log });
  metrics.gauge('clock_offset_seconds', () => clockCheck.offsetMs / 1000);
  const auth = new Authenticator({
    directory,
    revocations,
    clockCheck,
    tokenTtlMaxSeconds: config.TUTTI_TOKEN_TTL_MAX_SECONDS,
    pollMs: config.TUTTI_REVOCATION_POLL_MS,
    demo: !config.production,
  });

  const memory = new MemoryGuard(config.TUTTI_MEMORY_MAX_PERCENT / 100);
  metrics.gauge('memory_share', () => memory.share);
  metrics.gauge('revocations', () => revocations.size);

  const bus = await openBus(config, { log, metrics });
  const eventLog = createEventLog(database, appendLimits(config), metrics, log);
  const outlets: Outlet[] = [];
  const outlet: Outlet = {
    publish(room, frame, except) {
      for (const one of outlets) one.publish(room, frame, except);
    },
  };
  const clock = systemClock;
  const feeds = new Feeds({ log: eventLog, bus, outlet, clock, metrics, logger: log, limits: feedLimits(config) });
  const runs = new Runs({
    store: createRunStore(database),
    bus,
    rooms: feeds,
    metrics,
    log,
    clock,
    limits: runLimits(config),
  });
  const queue = new QueuedRuns({ queued: () => queuedRuns(database), metrics, clock });
  const rooms = new Rooms({
    log: eventLog,
    feeds,
    runs,
    bus,
    metrics,
    clock,
    limits: {
      roomsPerSession: config.TUTTI_MAX_ROOMS_PER_SESSION,
      publishesPerSecond: config.TUTTI_TENANT_PUBLISHES_PER_SECOND,
    },
    memory,
  });

  const revoked = systemKey('*', 'revocations');
  bus.onMessage((room, message) => {
    if (room === revoked) revocations.poke();
    else if (roomOf(room).startsWith('!')) runs.receive(room, message);
    else rooms.receive(room, message);
  });
  await Promise.all([bus.subscribe(revoked), revocations.start(), clockCheck.start()]);

  const health = new Health(database, eventLog);
  // Else the gauge would be as old as the last question of a balancer.
  const stopProbing = every(clock, PROBE_MS, () => void health.ready());
  metrics.gauge('bus_connected', () => Number(bus.connected()));
  metrics.gauge('database_up', () => Number(health.databaseUp));
  metrics.gauge('draining', () => Number(health.draining));

  const app = uWS.App();
  const plain = new PlainConnections(app, config.TUTTI_HTTP_MAX_CONNECTIONS, metrics);
  const allowedOrigins = config.TUTTI_ALLOWED_ORIGINS.split(',').flatMap((origin) => origin.trim() || []);
  const connections = new ConnectionLimits(connectionLimit(config), memory);
  const inFlight = new InFlight(inFlightLimit(config));
  metrics.gauge('in_flight_bytes', () => inFlight.bytes);
  const sockets = new SocketServer({
    app,
    rooms,
    runs,
    auth,
    admission: connections,
    inFlight,
    revocations,
    upgraded: () => plain.upgraded(),
    metrics,
    log,
    nodeId,
    ...(config.REDIS_URL ? { redis: redisOf(config, config.REDIS_URL) } : {}),
    options: socketOptions(config, allowedOrigins),
  });
  const http = mountHttp(app, {
    rooms,
    runs,
    auth,
    metrics,
    health,
    log,
    limits: httpLimits(config),
    allowedOrigins,
    ...(existsSync(WEB_DIR) ? { webDir: WEB_DIR } : {}),
    connections,
    inFlight,
    revocations,
    extraRoutes,
  });
  outlets.push(sockets, http);
  feeds.start(runs);
  runs.start();
  queue.start();
  sockets.start();

  const listening = await listen(app, config.HOST, config.PORT);
  const url = `http://${config.HOST.includes(':') ? `[${config.HOST}]` : config.HOST}:${listening.port}`;
  log.info({ url, redis: config.REDIS_URL !== undefined }, 'Gateway listens');

  return {
    url,
    async drain() {
      const until = performance.now() + config.TUTTI_DRAIN_TIMEOUT_MS;
      const leftMs = () => Math.max(0, until - performance.now());
      health.draining = true;
      log.info({ noticeMs: config.TUTTI_DRAIN_NOTICE_MS }, 'Draining');
      // Until the balancer has looked it sends clients here: they are served as before.
      await pause(config.TUTTI_DRAIN_NOTICE_MS);
      listening.close();
      const withinMs = leftMs() * DISMISS_SHARE;
      await Promise.all([http.dismiss({ withinMs }), sockets.dismiss({ withinMs })]);
      const commits = Promise.all([eventLog.drain(), runs.drain()]);
      const committed = await within(leftMs() - Math.min(CLOSING_MS, leftMs() * CLOSING_SHARE), commits);
      if (!committed) log.error({}, 'Left without committing all that was accepted; its senders have it still');
      await http.close();
      runs.close();
      queue.stop();
      feeds.close();
      revocations.stop();
      clockCheck.stop();
      await sockets.close();
      await bus.close();
      stopProbing();
      await database.close();
      log.info({}, 'Drained');
      return committed;
    },
  };
}

/** Whether the work was done in `ms`. */
async function within(ms: number, work: Promise<unknown>): Promise<boolean> {
  const late = new AbortController();
  const done = work.then(() => true);
  try {
    return await Promise.race([done, pause(ms, false, { signal: late.signal })]);
  } finally {
    late.abort();
  }
}

/** What `/readyz` tells a balancer. */
class Health {
  draining = false;
  databaseUp = true;

  constructor(
    private readonly database: Database,
    private readonly eventLog: PostgresLog,
  ) {}

  live(): boolean {
    return true;
  }

  /**
   * A Postgres that answers and commits nothing (locked, full, read-only) is no reason to leave: readers are served, and every
   * gateway has the same one, so that a balancer would be left with none. It is told in `degraded`.
   */
  async ready(): Promise<{ ready: boolean; reasons: string[]; degraded: string[] }> {
    this.databaseUp = await this.database.healthy();
    const reasons = [
      ...(this.draining ? ['The gateway drains.'] : []),
      ...(this.databaseUp ? [] : ['Postgres does not answer.']),
    ];
    const since = this.eventLog.failingSince();
    const degraded =
      since === undefined
        ? []
        : [`Publishes, of some rooms or of all, have not been committed since ${new Date(since).toISOString()}.`];
    return { ready: reasons.length === 0, reasons, degraded };
  }
}

async function checkIsolation(database: Database, { production }: Config, log: Logger): Promise<void> {
  try {
    await verifyIsolation(database);
  } catch (err) {
    if (production) throw err;
    log.warn({ err }, 'Postgres does not keep tenants apart; production would refuse to start');
  }
}

const redisOf = (config: Config, url: string) => ({
  url,
  cluster: config.TUTTI_REDIS_CLUSTER ?? false,
  prefix: config.TUTTI_REDIS_PREFIX,
});

async function openBus(config: Config, deps: { log: Logger; metrics: ReturnType<typeof createMetrics> }): Promise<Bus> {
  if (!config.REDIS_URL) return createMemoryBus();
  return createRedisBus({ ...redisOf(config, config.REDIS_URL), nodeId: config.TUTTI_NODE_ID, ...deps });
}

/** Binds the port; several processes may bind the same one. */
function listen(app: uWS.TemplatedApp, host: string, port: number): Promise<{ port: number; close(): void }> {
  return new Promise((resolve, reject) => {
    app.listen(host, port, (socket) => {
      if (!socket) {
        reject(new Error(`Cannot listen on ${host}:${port}: the port is taken, or may not be used. Set PORT or HOST.`));
        return;
      }
      resolve({ port: uWS.us_socket_local_port(socket), close: () => uWS.us_listen_socket_close(socket) });
    });
  });
}

const connectionLimit = (config: Config) => ({
  total: config.TUTTI_MAX_CONNECTIONS,
  perTenant: config.TUTTI_MAX_CONNECTIONS_PER_TENANT,
  perUser: config.TUTTI_MAX_SESSIONS_PER_USER,
});

const inFlightLimit = (config: Config) => ({
  perSession: config.TUTTI_IN_FLIGHT_PER_SESSION,
  bytesPerSession: config.TUTTI_IN_FLIGHT_BYTES_PER_SESSION,
  bytesPerTenant: config.TUTTI_IN_FLIGHT_BYTES_PER_TENANT,
});

const appendLimits = (config: Config) => ({
  lanes: config.TUTTI_APPEND_LANES,
  batchMax: config.TUTTI_APPEND_BATCH_MAX,
  lingerMs: config.TUTTI_APPEND_LINGER_MS,
  queueMax: config.TUTTI_APPEND_QUEUE_MAX,
  queueBytes: config.TUTTI_APPEND_QUEUE_BYTES,
  timeoutMs: config.TUTTI_APPEND_TIMEOUT_MS,
});

const feedLimits = (config: Config) => ({
  ringBytes: config.TUTTI_RING_BYTES_PER_ROOM,
  ringBytesTotal: config.TUTTI_RING_BYTES_TOTAL,
  gapRepairMs: config.TUTTI_GAP_REPAIR_MS,
  headCheckMs: config.TUTTI_HEAD_CHECK_MS,
  lingerMs: config.TUTTI_ROOM_LINGER_MS,
  replayBufferBytes: config.TUTTI_REPLAY_BUFFER_BYTES,
  roomsOpen: { total: config.TUTTI_MAX_ROOMS_OPEN, perTenant: config.TUTTI_MAX_ROOMS_OPEN_PER_TENANT },
});

const runLimits = (config: Config) => ({
  leaseMs: config.TUTTI_RUN_LEASE_MS,
  commitMs: config.TUTTI_RUN_COMMIT_MS,
  segmentBytes: config.TUTTI_RUN_SEGMENT_BYTES,
  uncommittedMaxBytes: config.TUTTI_RUN_UNCOMMITTED_MAX_BYTES,
  uncommittedTotalBytes: config.TUTTI_RUN_UNCOMMITTED_TOTAL_BYTES,
  outputMaxBytes: config.TUTTI_RUN_OUTPUT_MAX_BYTES,
  maxAttempts: config.TUTTI_RUN_MAX_ATTEMPTS,
  queueTtlMs: config.TUTTI_RUN_QUEUE_TTL_MS,
  durationMaxMs: config.TUTTI_RUN_DURATION_MAX_MS,
  sweepMs: config.TUTTI_RUN_SWEEP_MS,
  livePerTenant: config.TUTTI_RUNS_LIVE_PER_TENANT,
  livePerRoom: config.TUTTI_RUNS_LIVE_PER_ROOM,
  claimsWaitingMax: config.TUTTI_CLAIMS_WAITING_MAX,
});

const httpLimits = (config: Config) => ({
  maxBodyBytes: config.TUTTI_HTTP_MAX_BODY_BYTES,
  requestsMax: config.TUTTI_HTTP_MAX_REQUESTS,
  streamBufferBytes: config.TUTTI_SOCKET_MAX_BACKPRESSURE_BYTES,
  commandsPerSecond: config.TUTTI_COMMANDS_PER_SECOND,
  tenantCommandsPerSecond: config.TUTTI_TENANT_COMMANDS_PER_SECOND,
  tokenGraceMs: config.TUTTI_TOKEN_GRACE_MS,
});

const socketOptions = (config: Config, allowedOrigins: string[]) => ({
  allowedOrigins,
  maxPayloadBytes: config.TUTTI_SOCKET_MAX_PAYLOAD_BYTES,
  maxBackpressureBytes: config.TUTTI_SOCKET_MAX_BACKPRESSURE_BYTES,
  maxConnections: config.TUTTI_MAX_CONNECTIONS,
  pingIntervalMs: config.TUTTI_SOCKET_PING_INTERVAL_MS,
  pingTimeoutMs: config.TUTTI_SOCKET_PING_TIMEOUT_MS,
  connectTimeoutMs: config.TUTTI_CONNECT_TIMEOUT_MS,
  connectionsShare: config.TUTTI_CONNECTIONS_TIME_PERCENT / 100,
  rates: { perSession: config.TUTTI_COMMANDS_PER_SECOND, perTenant: config.TUTTI_TENANT_COMMANDS_PER_SECOND },
  workerRates: {
    perSession: config.TUTTI_WORKER_COMMANDS_PER_SECOND,
    perTenant: config.TUTTI_TENANT_WORKER_COMMANDS_PER_SECOND,
  },
  times: { noticeMs: config.TUTTI_TOKEN_NOTICE_MS, graceMs: config.TUTTI_TOKEN_GRACE_MS },
  announced: {
    dataBytes: MAX_DATA_BYTES,
    historyLimit: MAX_HISTORY_LIMIT,
    roomsPerSession: config.TUTTI_MAX_ROOMS_PER_SESSION,
    commandsPerSecond: config.TUTTI_COMMANDS_PER_SECOND,
  },
});
