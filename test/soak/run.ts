import { memoryOf, memoryProbe, sleep } from '../../bench/support/measure.js';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { startPostgres } from '../support/postgres.js';
import { startRedis } from '../support/redis.js';
import { CHURN_ENV, churnConnections, churnRooms, nothingHeld } from './churn.js';

/*
 * `npm run soak [-- connections rooms]`: what comes and goes leaves nothing behind (MEM1). A gateway is warmed up with a part of
 * the same load, its memory is taken after garbage collection, then again after all of the load. Exit code 1 where resident
 * memory has grown by more than 15 %. `SOAK_SHARE=0.1` makes a tenth of the load.
 */

const GROWTH_MAX = 0.15;
const share = Number(process.env.SOAK_SHARE ?? 1);

type Churn = (gateway: GatewayProcess, count: number, progress: (done: number) => void) => Promise<void>;
const soaks: Record<string, { count: number; warmUp: number; churn: Churn }> = {
  connections: { count: 100_000, warmUp: 10_000, churn: churnConnections },
  rooms: { count: 10_000, warmUp: 2_000, churn: churnRooms },
};

/** Resident memory and heap when nothing happens any more, in MB. */
async function settled(gateway: GatewayProcess): Promise<{ rss: number; heap: number }> {
  await nothingHeld(gateway);
  // Buffers of closed connections are let go of by timers and by a second collection.
  await sleep(3000);
  const process = { pid: gateway.pid, output: gateway.logs };
  await memoryOf(process);
  await sleep(500);
  const { rss, heapUsed } = await memoryOf(process);
  return { rss: rss / 1e6, heap: heapUsed / 1e6 };
}

async function soak(name: string, env: Record<string, string>): Promise<boolean> {
  const { count, warmUp, churn } = soaks[name] ?? { count: 0, warmUp: 0, churn: churnRooms };
  const gateway = await startGateway({ env: { ...env, ...CHURN_ENV, NODE_OPTIONS: memoryProbe } });
  try {
    const total = Math.round(count * share);
    const started = performance.now();
    const tell = (done: number) => {
      if (done % Math.ceil(total / 10) !== 0) return;
      const seconds = Math.round((performance.now() - started) / 1000);
      process.stdout.write(`  ${name} ${done} of ${total}, ${seconds} s\n`);
    };
    await churn(gateway, Math.round(warmUp * Math.min(1, share * 2)), () => undefined);
    const before = await settled(gateway);
    await churn(gateway, total, tell);
    const after = await settled(gateway);
    const growth = after.rss / before.rss - 1;
    const text = ({ rss, heap }: typeof before) => `${rss.toFixed(1)} MB resident, ${heap.toFixed(1)} MB heap`;
    process.stdout.write(
      `${name}: ${text(before)} before, ${text(after)} after ${total}: ${(growth * 100).toFixed(1)} % ` +
        `(limit ${GROWTH_MAX * 100} %)\n`,
    );
    return growth <= GROWTH_MAX;
  } finally {
    await gateway.stop();
  }
}

const wanted = process.argv.slice(2).filter((name) => name in soaks);
const postgres = await startPostgres();
const redis = await startRedis();
try {
  const env = { DATABASE_URL: postgres.url, REDIS_URL: redis.url };
  for (const name of wanted.length > 0 ? wanted : Object.keys(soaks)) {
    if (!(await soak(name, env))) process.exitCode = 1;
  }
} finally {
  await redis.stop();
  await postgres.destroy();
}
