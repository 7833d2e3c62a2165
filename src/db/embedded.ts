import { mkdirSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import postgres from 'postgres';
import type { Logger } from '../core/telemetry.js';
import {
  type Cluster,
  openCluster,
  processesIn,
  runningServer,
  serverUrl,
  spawnServer,
  worksIn,
} from './embedded-cluster.js';
import { lockDataDirectory } from './embedded-lock.js';

const DATABASE = 'tutti';
const START_TIMEOUT_MS = 60_000;
const STOP_TIMEOUT_MS = 20_000;
const WATCH_MS = 500;
const BACKOFF_MAX_MS = 10_000;

export interface EmbeddedPostgres {
  /** Stays the same over restarts of the server. */
  readonly url: string;
  /** Fast shutdown: everything is written, then the data directory is free again. */
  stop(): Promise<void>;
}

/**
 * A Postgres of this gateway in its data directory: makes it, starts it, takes over the one a killed gateway left,
 * starts it again when it dies, until {@link EmbeddedPostgres.stop}.
 * @param say gets one line before what takes a while
 * @throws DataDirectoryInUse, or Error that says what to do
 */
export async function startEmbeddedPostgres(
  dataDir: string,
  log: Logger,
  say: (line: string) => void = () => undefined,
): Promise<EmbeddedPostgres> {
  const directory = resolve(dataDir);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const release = lockDataDirectory(directory);
  try {
    const cluster = openCluster(directory, say);
    const server = (await takeOver(cluster, log)) ?? (await launch(cluster, await freePort()));
    const url = serverUrl(server.port, cluster.password, DATABASE);
    await ensureDatabase(serverUrl(server.port, cluster.password, 'postgres'));
    const supervisor = new Supervisor(cluster, server, log);
    return {
      url,
      async stop() {
        await supervisor.stop();
        release();
      },
    };
  } catch (error) {
    release();
    throw error;
  }
}

/** URL of the embedded Postgres that runs for a data directory now; `undefined` where none does. */
export const embeddedUrl = (dataDir: string): string | undefined => runningServer(resolve(dataDir), DATABASE)?.url;

interface Server {
  pid: number;
  port: number;
}

/** Watches the server and starts it again, with growing pauses. */
class Supervisor {
  readonly #stopping = new AbortController();
  readonly #watching: Promise<void>;

  constructor(
    private readonly cluster: Cluster,
    private server: Server,
    private readonly log: Logger,
  ) {
    this.#watching = this.#watch();
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#watching;
    await end(this.server.pid, this.cluster.data);
  }

  async #watch(): Promise<void> {
    let pauseMs = WATCH_MS;
    while (!this.#stopping.signal.aborted) {
      await this.#pause(WATCH_MS);
      if (this.#stopping.signal.aborted || worksIn(this.server.pid, this.cluster.data)) continue;
      this.log.error({ pid: this.server.pid }, 'the embedded Postgres ended; starting it again');
      try {
        await settle(this.cluster.data);
        this.server = await launch(this.cluster, this.server.port);
        this.log.info({ pid: this.server.pid }, 'the embedded Postgres is back');
        pauseMs = WATCH_MS;
      } catch (error) {
        this.log.error({ err: error, retryInMs: pauseMs }, 'the embedded Postgres did not start');
        await this.#pause(pauseMs);
        pauseMs = Math.min(2 * pauseMs, BACKOFF_MAX_MS);
      }
    }
  }

  /** Holds nothing up: neither the end of the process nor a stop. */
  async #pause(ms: number): Promise<void> {
    const signal = this.#stopping.signal;
    await sleep(ms, undefined, { ref: false, signal }).catch(() => undefined);
  }
}

/** The server a killed gateway left behind, where it is ours and answers; one that does not answer is ended. */
async function takeOver(cluster: Cluster, log: Logger): Promise<Server | undefined> {
  const left = runningServer(cluster.directory, 'postgres');
  if (left) {
    const { port } = new URL(left.url);
    if (await answers(left.url, () => worksIn(left.pid, cluster.data), 10_000)) {
      log.info({ pid: left.pid }, 'took over the embedded Postgres of a gateway that was killed');
      return { pid: left.pid, port: Number(port) };
    }
    log.warn({ pid: left.pid }, 'the embedded Postgres left by a killed gateway does not answer; ending it');
    await end(left.pid, cluster.data);
  }
  await settle(cluster.data);
  return undefined;
}

/**
 * Waits for children of a killed server to go. Then `postmaster.pid`, if it is there, names a process that is none of
 * ours, and Postgres would refuse to start if its number was reused by one of the same user.
 */
async function settle(data: string): Promise<void> {
  for (const until = performance.now() + STOP_TIMEOUT_MS; processesIn(data).length > 0; await sleep(20)) {
    if (performance.now() < until) continue;
    throw new Error(`Processes ${processesIn(data).join(', ')} still work in ${data}.`);
  }
  if (process.platform === 'linux') rmSync(join(data, 'postmaster.pid'), { force: true });
}

async function launch(cluster: Cluster, port: number): Promise<Server> {
  const child = spawnServer(cluster, port);
  let failure: Error | undefined;
  child.once('error', (error) => {
    failure = error;
  });
  const running = () => failure === undefined && child.exitCode === null && child.signalCode === null;
  const url = serverUrl(port, cluster.password, 'postgres');
  if ((await answers(url, running, START_TIMEOUT_MS)) && child.pid !== undefined) return { pid: child.pid, port };
  if (child.pid !== undefined && running()) await end(child.pid, cluster.data);
  const log = join(cluster.directory, 'postgres.log');
  throw new Error(`The embedded Postgres did not start; ${failure?.message ?? `${log} says why`}.`);
}

async function answers(url: string, running: () => boolean, timeoutMs: number): Promise<boolean> {
  for (const until = performance.now() + timeoutMs; running() && performance.now() < until; await sleep(30)) {
    const sql = postgres(url, { max: 1, connect_timeout: 5, onnotice: () => undefined });
    try {
      await sql`select 1`;
      return true;
    } catch {
      // starting up, or recovering
    } finally {
      await sql.end({ timeout: 0 }).catch(() => undefined);
    }
  }
  return false;
}

async function ensureDatabase(url: string): Promise<void> {
  const sql = postgres(url, { max: 1, onnotice: () => undefined });
  try {
    const [found] = await sql`select 1 from pg_database where datname = ${DATABASE}`;
    if (!found) await sql.unsafe(`create database ${DATABASE}`);
  } finally {
    await sql.end({ timeout: 1 });
  }
}

/** Fast shutdown; immediate where that takes too long, which the next start recovers from. */
async function end(pid: number, data: string): Promise<void> {
  for (const signal of ['SIGINT', 'SIGQUIT', 'SIGKILL'] as const) {
    if (worksIn(pid, data)) kill(pid, signal);
    for (const until = performance.now() + STOP_TIMEOUT_MS; performance.now() < until; await sleep(20)) {
      if (!worksIn(pid, data)) return;
    }
  }
}

function kill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // gone already
  }
}

function freePort(): Promise<number> {
  return new Promise((done, failed) => {
    const server = createServer();
    server.once('error', failed);
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() => (address && typeof address === 'object' ? done(address.port) : failed(new Error('no port'))));
    });
  });
}
