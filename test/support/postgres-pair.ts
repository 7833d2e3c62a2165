import { type SpawnOptionsWithoutStdio, spawn, spawnSync } from 'node:child_process';
import {
  accessSync,
  chmodSync,
  chownSync,
  constants,
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  rmSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { type Owned, own } from './owned.js';
import { freePort } from './ports.js';
import { ready, unprivileged } from './postgres.js';

/** What the scripts of deploy/postgres call. The package of `npm ci` has no clients, so a server has to be installed. */
const TOOLS = ['initdb', 'postgres', 'psql', 'pg_basebackup', 'pg_verifybackup', 'pg_isready', 'pg_dump'];

/** The directory of a whole Postgres: PG_BIN, or the newest one installed; `undefined` where there is none. */
export function wholePostgres(): string | undefined {
  const installed = '/usr/lib/postgresql';
  const versions = existsSync(installed) ? readdirSync(installed).sort((a, b) => Number(b) - Number(a)) : [];
  const given = process.env.PG_BIN;
  return [...(given ? [given] : []), ...versions.map((version) => join(installed, version, 'bin'))].find((bin) =>
    TOOLS.every((tool) => runs(join(bin, tool))),
  );
}

function runs(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** One server of an installation: a data directory and a port. */
export interface Server {
  readonly url: string;
  readonly port: number;
  readonly data: string;
  start(): Promise<void>;
  /** SIGKILL to all of it, as when the machine's power goes. */
  kill9(): Promise<void>;
  stop(): Promise<void>;
  output(): string;
}

/** Several servers with the tools of deploy/postgres, in one directory. */
export interface Servers {
  /** For backups and archives. */
  readonly directory: string;
  /** A new cluster, not started. */
  make(name: string): Promise<Server>;
  /** A place for a server whose data directory a script makes. */
  place(name: string): Promise<Server>;
  /** Runs a script of deploy/postgres, or a tool, against a server. @returns what it printed. @throws Error with its output. */
  run(script: string, args: string[], against: Server, env?: Record<string, string>): Promise<string>;
  destroy(): Promise<void>;
}

export function startServers(bin: string): Servers {
  const directory = mkdtempSync(join(tmpdir(), 'tutti-servers-'));
  chmodSync(directory, 0o755);
  const user = process.getuid?.() === 0 ? unprivileged() : undefined;
  if (user) chownSync(directory, user.uid, user.gid);
  const all: { server: Server; owned: () => Owned | undefined }[] = [];
  // The checkout may lie where only root may look.
  const scripts = join(directory, 'scripts');
  cpSync(resolve(import.meta.dirname, '../../deploy/postgres'), scripts, { recursive: true });
  const base = { ...process.env, LC_ALL: 'C', PG_BIN: bin, PGUSER: 'postgres', PGHOST: '127.0.0.1' };

  const place = async (name: string): Promise<Server> => {
    const port = await freePort();
    const data = join(directory, name);
    const url = `postgres://postgres@127.0.0.1:${port}/postgres`;
    let owned: Owned | undefined;
    const server: Server = {
      url,
      port,
      data,
      async start() {
        const settings = { listen_addresses: '127.0.0.1', unix_socket_directories: '', shared_buffers: '32MB' };
        const args = Object.entries(settings).flatMap(([key, value]) => ['-c', `${key}=${value}`]);
        owned = own(join(bin, 'postgres'), ['-D', data, '-p', String(port), ...args], {
          env: base,
          cwd: directory,
          user,
          lastSignal: 'QUIT',
        });
        await ready(url, owned);
      },
      async kill9() {
        await owned?.kill9();
      },
      async stop() {
        await owned?.end('SIGINT');
      },
      output: () => owned?.output() ?? '',
    };
    all.push({ server, owned: () => owned });
    return server;
  };

  return {
    directory,
    place,
    async make(name) {
      const server = await place(name);
      const init = spawnSync(
        join(bin, 'initdb'),
        ['-D', server.data, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--no-sync'],
        {
          env: base,
          cwd: directory,
          encoding: 'utf8',
          ...user,
        },
      );
      if (init.status !== 0) throw new Error(`initdb failed: ${init.error ?? init.stderr}`);
      return server;
    },
    run(script, args, against, env = {}) {
      const ours = script.endsWith('.sh');
      return output(ours ? 'sh' : join(bin, script), ours ? [join(scripts, script), ...args] : args, {
        env: { ...base, PGPORT: String(against.port), PGDATABASE: 'postgres', PGDATA: against.data, ...env },
        cwd: directory,
        ...user,
      });
    },
    async destroy() {
      await Promise.all(all.map(({ owned }) => owned()?.end('SIGQUIT')));
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

function output(file: string, args: string[], options: SpawnOptionsWithoutStdio): Promise<string> {
  const child = spawn(file, args, options);
  let printed = '';
  let problems = '';
  child.stdout.on('data', (chunk: Buffer) => {
    printed += chunk.toString();
  });
  child.stderr.on('data', (chunk: Buffer) => {
    problems += chunk.toString();
  });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => {
      if (code === 0) resolve(printed.trim());
      else reject(new Error(`${file} ${args.join(' ')} ended with ${code}:\n${printed}${problems}`));
    });
  });
}
