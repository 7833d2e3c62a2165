import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  chownSync,
  closeSync,
  existsSync,
  lchownSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { type Binaries, findBinaries, type ServerUser } from './embedded-binaries.js';

const SUPERUSER = 'tutti';
const LOG_MAX_BYTES = 10 * 1024 * 1024;

/** The files of an embedded Postgres in a data directory. */
export interface Cluster {
  /** The data directory of the gateway. */
  directory: string;
  /** The data directory of Postgres in it. */
  data: string;
  password: string;
  binaries: Binaries;
  /** Whom the server runs as, where that is not us. */
  user: ServerUser | undefined;
}

/** The running server's URL as its files tell it; `undefined` where none runs. Good for any process that may read them. */
export function runningServer(directory: string, database: string): { pid: number; url: string } | undefined {
  const data = join(directory, 'postgres');
  const lines = readText(join(data, 'postmaster.pid'))?.split('\n');
  const password = readText(join(directory, 'postgres.password'))?.trim();
  const pid = Number(lines?.[0]);
  const port = Number(lines?.[3]);
  if (!password || !pid || !port || !worksIn(pid, data)) return undefined;
  return { pid, url: serverUrl(port, password, database) };
}

export const serverUrl = (port: number, password: string, database: string): string =>
  `postgres://${SUPERUSER}:${password}@127.0.0.1:${port}/${database}`;

/**
 * The cluster of a data directory, made where there is none.
 * @param say told before what takes a while
 */
export function openCluster(directory: string, say: (line: string) => void): Cluster {
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const data = join(directory, 'postgres');
  const made = existsSync(join(data, 'PG_VERSION'));
  const user = serverUser(made ? data : undefined);
  const major = made ? Number.parseInt(readFileSync(join(data, 'PG_VERSION'), 'utf8'), 10) : undefined;
  const binaries = findBinaries(major, user);
  const password = keptPassword(directory, made);
  const cluster = { directory, data, password, binaries, user };
  if (!made) {
    say(`Making a Postgres ${binaries.major} database in ${data} …`);
    initialise(cluster);
  } else if (user) {
    own(data, user);
  }
  return cluster;
}

/** Starts the server on a port of 127.0.0.1, in a session of its own: it must outlive a crash of ours to be taken over. */
export function spawnServer(cluster: Cluster, port: number) {
  const log = join(cluster.directory, 'postgres.log');
  if (existsSync(log) && statSync(log).size > LOG_MAX_BYTES) truncateSync(log);
  const output = openSync(log, 'a', 0o600);
  const settings = {
    port: String(port),
    listen_addresses: '127.0.0.1',
    unix_socket_directories: '',
    max_connections: '200',
    log_timezone: 'UTC',
    timezone: 'UTC',
  };
  const args = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
  try {
    const child = spawn(join(cluster.binaries.bin, 'postgres'), ['-D', pathFor(cluster.user, cluster.data), ...args], {
      cwd: cluster.data,
      env: environment,
      detached: true,
      stdio: ['ignore', output, output],
      ...cluster.user,
    });
    child.unref();
    return child;
  } finally {
    closeSync(output);
  }
}

/** Processes that work in the data directory, known on Linux only. */
export function processesIn(data: string): number[] {
  if (process.platform !== 'linux') return [];
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .map(Number)
    .filter((pid) => worksIn(pid, data));
}

/** Whether a process is a server on this data directory: Postgres works inside of it. */
export function worksIn(pid: number, data: string): boolean {
  try {
    if (process.platform === 'linux') return readlinkSync(`/proc/${pid}/cwd`) === realpathSync(data);
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

const environment = { PATH: process.env.PATH ?? '/usr/bin:/bin', LC_ALL: 'C', TZ: 'UTC' };

/**
 * The name of a directory for a server that is another user than we are. Node enters `cwd` before it gives up its rights, and
 * /proc/self/cwd leads there without passing the folders above, which that user may not be allowed to enter.
 */
const pathFor = (user: ServerUser | undefined, directory: string): string =>
  user && process.platform === 'linux' ? '/proc/self/cwd' : realpathSync(directory);

function initialise(cluster: Cluster): void {
  const draft = join(cluster.directory, 'postgres.new');
  const data = join(draft, 'data');
  rmSync(draft, { recursive: true, force: true });
  mkdirSync(data, { recursive: true, mode: 0o700 });
  writeFileSync(join(draft, 'password'), cluster.password, { mode: 0o600 });
  if (cluster.user) own(draft, cluster.user);
  const result = spawnSync(
    join(cluster.binaries.bin, 'initdb'),
    ['-D', pathFor(cluster.user, data), '-U', SUPERUSER, '--pwfile=../password', '-A', 'scram-sha-256'].concat([
      '-E',
      'UTF8',
      '--locale=C',
    ]),
    { cwd: data, env: environment, encoding: 'utf8', ...cluster.user },
  );
  if (result.status !== 0) {
    throw new Error(`initdb failed: ${result.error?.message ?? (result.stderr.trim() || result.stdout.trim())}`);
  }
  // Complete or absent: a start that is killed half-way leaves nothing that looks like a database.
  renameSync(data, cluster.data);
  rmSync(draft, { recursive: true, force: true });
}

/** Postgres refuses to run as root. */
function serverUser(data: string | undefined): ServerUser | undefined {
  const uid = process.getuid?.();
  if (data !== undefined && uid !== undefined) {
    const owner = statSync(data);
    if (uid !== 0 && owner.uid !== uid) {
      throw new Error(
        `${data} belongs to another user (${owner.uid}). Start as that user or as root, or set TUTTI_DATA_DIR.`,
      );
    }
    if (uid === 0 && owner.uid !== 0) return { uid: owner.uid, gid: owner.gid };
  }
  if (uid !== 0) return undefined;
  const users = (readText('/etc/passwd') ?? '').split('\n');
  for (const name of ['postgres', 'nobody']) {
    const fields = users.find((line) => line.startsWith(`${name}:`))?.split(':');
    if (fields) return { uid: Number(fields[2]), gid: Number(fields[3]) };
  }
  throw new Error('Postgres refuses to run as root, and there is no user "postgres" or "nobody" to run it as.');
}

/** Gives a tree to the server's user; a copied data directory may belong to whoever copied it. */
function own(path: string, { uid, gid }: ServerUser): void {
  chownSync(path, uid, gid);
  for (const entry of readdirSync(path, { recursive: true, encoding: 'utf8' })) lchownSync(join(path, entry), uid, gid);
}

function keptPassword(directory: string, made: boolean): string {
  const path = join(directory, 'postgres.password');
  const kept = readText(path)?.trim();
  if (kept) return kept;
  if (made) throw new Error(`${path} is missing; without it the database in ${directory} cannot be opened.`);
  const password = randomBytes(24).toString('hex');
  writeFileSync(path, password, { mode: 0o600 });
  return password;
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}
