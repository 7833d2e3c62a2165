import { existsSync } from 'node:fs';
import { cpus } from 'node:os';
import { resolve } from 'node:path';
import { type GatewayProcess, startGateway } from '../../test/support/gateway.js';
import { type Owned, own } from '../../test/support/owned.js';
import { type PostgresServer, startPostgres } from '../../test/support/postgres.js';
import { type RedisServer, startRedis } from '../../test/support/redis.js';
import { Session } from '../../test/support/session.js';
import { devToken } from '../../test/support/tokens.js';
import { cpuProbe, each, sleep } from './measure.js';

/** Who may be asked for more than a person would: limits that are not what is measured. */
const WIDE = {
  LOG_LEVEL: 'warn',
  TUTTI_COMMANDS_PER_SECOND: '1000000',
  TUTTI_TENANT_COMMANDS_PER_SECOND: '10000000',
  TUTTI_TENANT_PUBLISHES_PER_SECOND: '10000000',
  TUTTI_MAX_SESSIONS_PER_USER: '100000',
};

/** For benches of the limits themselves: the defaults. */
const QUIETER = { LOG_LEVEL: 'warn' };

const root = resolve(import.meta.dirname, '../..');
const bench = resolve(import.meta.dirname, '../run.ts');

/** `--profile <directory>`: gateways and floors leave a CPU profile there when they end. */
const profileAt = process.argv.indexOf('--profile');
const profile = profileAt < 0 ? [] : [cpuProbe(resolve(process.argv[profileAt + 1] ?? 'profiles'))];

export interface Stage {
  readonly postgres: PostgresServer;
  /** @throws Error unless the stage was set with Redis. */
  readonly redis: RedisServer;
  /** A gateway process of the build, on the stage's servers, limits out of the way. `options` are of node. */
  gateway(env?: Record<string, string>, options?: string): Promise<GatewayProcess>;
  /** A process of `bench/floors/`. */
  floor(name: string, args?: string[], options?: string): Promise<Floor>;
}

export interface Floor extends Owned {
  readonly port: number;
}

/** Sets up real servers, runs the work and takes everything down again. */
export async function onStage(
  needs: { redis: boolean; limits?: 'default' },
  work: (stage: Stage) => Promise<void>,
): Promise<void> {
  const ends: (() => Promise<unknown>)[] = [];
  try {
    const postgres = await startPostgres({ settings: { shared_buffers: '128MB' } });
    ends.push(() => postgres.destroy());
    let redis: RedisServer | undefined;
    if (needs.redis) {
      redis = await startRedis();
      const started = redis;
      ends.push(() => started.stop());
    }
    const servers = {
      ...(needs.limits ? QUIETER : WIDE),
      DATABASE_URL: postgres.url,
      ...(redis ? { REDIS_URL: redis.url } : {}),
    };
    await work({
      postgres,
      get redis() {
        if (!redis) throw new Error('a stage without Redis');
        return redis;
      },
      async gateway(env = {}, options = '') {
        const nodeOptions = [...profile, options].join(' ').trim();
        const gateway = await startGateway({
          env: {
            ...servers,
            TUTTI_REDIS_PREFIX: 'bench:',
            ...env,
            ...(nodeOptions ? { NODE_OPTIONS: nodeOptions } : {}),
          },
        });
        ends.push(() => gateway.stop());
        return gateway;
      },
      async floor(name, args = [], options = '') {
        const floor = await startFloor(name, args, options);
        ends.push(() => floor.end());
        return floor;
      },
    });
  } finally {
    for (const end of ends.reverse()) await end().catch(() => undefined);
  }
}

async function startFloor(name: string, args: string[], options: string): Promise<Floor> {
  const { PATH = '', HOME = '' } = process.env;
  const nodeOptions = [...profile, options].join(' ').trim();
  const env = { PATH, HOME, ...(nodeOptions ? { NODE_OPTIONS: nodeOptions } : {}) };
  const child = own(process.execPath, ['--import', 'tsx', bench, 'floor', name, ...args], { env, cwd: root });
  const listening = () => /listening (\d+)/.exec(child.output())?.[1];
  for (let waited = 0; listening() === undefined; waited += 20) {
    if (!child.running() || waited > 20_000) throw new Error(`floor ${name}: ${child.output()}`);
    await sleep(20);
  }
  return Object.assign(child, { port: Number(listening()) });
}

/** Whether gateways run the build, as measuring should: the sources through a loader are not what is deployed. */
export function describeMachine(): string {
  const built = existsSync(resolve(root, 'dist/main.js'));
  const [cpu] = cpus();
  return `node ${process.version}, ${cpus().length} × ${cpu?.model ?? 'CPU'}${built ? '' : ', no build: run npm run build'}`;
}

/** A session of a user of its own at a gateway. */
export async function openSession(gateway: GatewayProcess, user: string): Promise<Session> {
  return Session.open({ port: gateway.port, auth: { token: await devToken({ user }) } });
}

/** Many sessions, a bounded number connecting at a time. */
export function openSessions(gateway: GatewayProcess, count: number, user = 'reader'): Promise<Session[]> {
  return each(count, 100, (i) => openSession(gateway, `${user}-${i}`));
}
