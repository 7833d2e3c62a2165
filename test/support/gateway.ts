import { randomBytes } from 'node:crypto';
import { chmodSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { own } from './owned.js';
import { freePort } from './ports.js';
import { DEV_SECRET, DEV_SERVER_KEY, DEV_WORKER_KEY } from './tokens.js';

export interface GatewayProcess {
  readonly url: string;
  readonly port: number;
  readonly pid: number;
  /** All it was started with; give `{ ...gateway.env }` to a second one to make it a sibling. */
  readonly env: Record<string, string>;
  running(): boolean;
  /** What it logged, the last 256 KiB. */
  logs(): string;
  signal(signal: NodeJS.Signals): void;
  kill9(): Promise<void>;
  /** SIGTERM; resolves with the exit code, without a limit of its own. */
  term(): Promise<number>;
  /** Ends it in whatever state it is. */
  stop(): Promise<void>;
}

export interface GatewayProcessOptions {
  env?: Record<string, string>;
  port?: number;
  /** `false`: returns at once. */
  waitForReady?: boolean;
  /** Another program than this version's, such as that of `previousVersion`. */
  main?: string;
}

const root = resolve(import.meta.dirname, '../..');

/**
 * A gateway process with the development keys of the tests, ready to serve. Give `DATABASE_URL` (see
 * `freshDatabase`) and, for several gateways, `REDIS_URL` and one `TUTTI_REDIS_PREFIX` in `env`. Runs the build if it is newer than
 * the sources, else the sources.
 * @throws Error with its logs if it ends or is not ready within 30 s.
 */
export async function startGateway(options: GatewayProcessOptions = {}): Promise<GatewayProcess> {
  const port = options.port ?? (await freePort());
  const scratch = mkdtempSync(join(tmpdir(), 'tutti-gateway-'));
  chmodSync(scratch, 0o755);
  const env: Record<string, string> = {
    NODE_ENV: 'development',
    HOST: '127.0.0.1',
    LOG_LEVEL: 'info',
    TUTTI_DATA_DIR: scratch,
    TUTTI_DEV_SECRET: DEV_SECRET,
    TUTTI_DEV_SERVER_KEY: DEV_SERVER_KEY,
    TUTTI_DEV_WORKER_KEY: DEV_WORKER_KEY,
    TUTTI_DEMO_WORKER: 'false',
    TUTTI_REDIS_PREFIX: `t${randomBytes(6).toString('hex')}:`,
    ...options.env,
    PORT: String(port),
  };
  const { PATH = '', HOME = '' } = process.env;
  const child = own(process.execPath, options.main ? [options.main] : program(), {
    cwd: root,
    env: { PATH, HOME, ...env },
    lastSignal: 'KILL',
    scratch,
  });
  const gateway: GatewayProcess = {
    url: `http://127.0.0.1:${port}`,
    port,
    pid: child.pid,
    env,
    running: child.running,
    logs: child.output,
    signal: child.signal,
    async kill9() {
      child.signal('SIGKILL');
      await child.exited;
    },
    async term() {
      child.signal('SIGTERM');
      return child.exited;
    },
    async stop() {
      child.signal('SIGCONT');
      if (child.running()) await child.end('SIGTERM', 5000);
      endEmbeddedPostgres(env.TUTTI_DATA_DIR ?? scratch);
      rmSync(scratch, { recursive: true, force: true });
    },
  };
  if (options.waitForReady === false) return gateway;
  const deadline = Date.now() + 30_000;
  while (!(await answers(`${gateway.url}/readyz`))) {
    if (child.running() && Date.now() < deadline) {
      await new Promise((wait) => setTimeout(wait, 50));
      continue;
    }
    const why = child.running() ? 'is not ready' : `ended with ${await child.exited}`;
    await gateway.stop();
    throw new Error(`The gateway ${why}:\n${gateway.logs()}`);
  }
  return gateway;
}

/** One that a killed gateway left behind. */
function endEmbeddedPostgres(dataDir: string): void {
  try {
    const pid = Number(readFileSync(join(dataDir, 'postgres/postmaster.pid'), 'utf8').split('\n')[0]);
    if (pid > 1) process.kill(pid, 'SIGQUIT');
  } catch {
    // there is none
  }
}

async function answers(url: string): Promise<boolean> {
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(2000) });
    await response.arrayBuffer();
    return response.ok;
  } catch {
    return false;
  }
}

function program(): string[] {
  const built = join(root, 'dist/main.js');
  const buildInfo = join(root, 'dist/tutti.tsbuildinfo');
  if (existsSync(built) && existsSync(buildInfo) && statSync(buildInfo).mtimeMs >= newestSource())
    return ['--max-semi-space-size=2', built];
  return ['--import', 'tsx', join(root, 'src/main.ts')];
}

function newestSource(): number {
  const sources = readdirSync(join(root, 'src'), { recursive: true, withFileTypes: true });
  return Math.max(
    ...sources.filter((f) => f.name.endsWith('.ts')).map((f) => statSync(join(f.parentPath, f.name)).mtimeMs),
  );
}
