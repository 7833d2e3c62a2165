import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createConnection } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inject } from 'vitest';
import { type Owned, own } from './owned.js';
import { freePort } from './ports.js';

export interface RedisServer {
  readonly url: string;
  readonly port: number;
  readonly pid: number;
  kill9(): Promise<void>;
  /** Starts it again, empty, on the same port. */
  start(): Promise<void>;
  stop(): Promise<void>;
  /** SIGSTOP / SIGCONT: connections stay open and nothing answers. */
  freeze(): void;
  thaw(): void;
}

/** The Redis shared by the run. Use a prefix of your own. */
export const sharedRedisUrl = (): string => inject('redisUrl');

/** A Redis of its own, without persistence, for tests that kill it. `args` are redis-server options. */
export async function startRedis(args: string[] = []): Promise<RedisServer> {
  const command = redisServer();
  const port = await freePort();
  let server: Owned | undefined;
  let scratch: string | undefined;
  const redis: RedisServer = {
    url: `redis://127.0.0.1:${port}`,
    port,
    get pid() {
      return server?.pid ?? -1;
    },
    async start() {
      if (server?.running()) return;
      scratch = mkdtempSync(join(tmpdir(), 'tutti-redis-'));
      const started = own(
        command,
        ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--dir', scratch, ...args],
        { scratch },
      );
      server = started;
      const deadline = Date.now() + 15_000;
      while (!(await answers(port))) {
        if (!started.running()) throw new Error(`redis-server ended: ${started.output()}`);
        if (Date.now() > deadline) throw new Error(`redis-server does not answer: ${started.output()}`);
        await new Promise((wait) => setTimeout(wait, 25));
      }
    },
    async kill9() {
      await server?.kill9();
      if (scratch) rmSync(scratch, { recursive: true, force: true });
    },
    async stop() {
      server?.signal('SIGCONT');
      if (server?.running()) await server.end('SIGTERM', 3000);
      if (scratch) rmSync(scratch, { recursive: true, force: true });
    },
    freeze: () => server?.signal('SIGSTOP'),
    thaw: () => server?.signal('SIGCONT'),
  };
  await redis.start();
  return redis;
}

function answers(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection({ port, host: '127.0.0.1' });
    const finish = (answer: boolean) => {
      socket.destroy();
      resolve(answer);
    };
    socket.setTimeout(1000, () => finish(false));
    socket.once('error', () => finish(false));
    socket.once('connect', () => socket.write('PING\r\n'));
    socket.once('data', (data) => finish(data.toString().startsWith('+PONG')));
  });
}

/** `redis-server` ≥ 7 of the PATH; on Debian as root it is installed where missing. */
function redisServer(): string {
  if (suits()) return 'redis-server';
  if (process.getuid?.() === 0 && spawnSync('apt-get', ['--version']).status === 0) {
    const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
    spawnSync('apt-get', ['update'], { env, stdio: 'ignore' });
    spawnSync('apt-get', ['install', '-y', '--no-install-recommends', 'redis-server'], { env, stdio: 'ignore' });
    if (suits()) return 'redis-server';
  }
  throw new Error(
    'No redis-server 7 or newer on the PATH. Install it (`brew install redis`, `sudo apt-get install redis-server`), ' +
      'or set REDIS_URL to a server the tests may use.',
  );
}

function suits(): boolean {
  const { stdout } = spawnSync('redis-server', ['--version'], { encoding: 'utf8' });
  return Number(/v=(\d+)/.exec(stdout ?? '')?.[1] ?? 0) >= 7;
}
