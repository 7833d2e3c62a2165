import { randomBytes } from 'node:crypto';
import { afterEach, expect, test } from 'vitest';
import { memoryOf, memoryProbe } from '../../bench/support/measure.js';
import { Undo } from '../e2e/run-stage.js';
import { startGateway } from '../support/gateway.js';
import { freshDatabase } from '../support/postgres.js';
import { sharedRedisUrl } from '../support/redis.js';
import { CHURN_ENV, churnConnections, churnRooms, nothingHeld } from './churn.js';

/* A small part of `npm run soak`, by counts and the heap, which are exact; resident memory needs the long run. */

const undo = new Undo();
afterEach(() => undo.all());

test('[MEM1] clients and rooms that come and go leave nothing behind', async () => {
  const { url } = undo.add(await freshDatabase(), ({ drop }) => drop());
  const env = {
    ...CHURN_ENV,
    DATABASE_URL: url,
    REDIS_URL: sharedRedisUrl(),
    TUTTI_REDIS_PREFIX: `soak-${randomBytes(5).toString('hex')}:`,
    NODE_OPTIONS: memoryProbe,
  };
  const gateway = undo.add(await startGateway({ env }), (one) => one.stop());
  const heap = async () => {
    await nothingHeld(gateway);
    const process = { pid: gateway.pid, output: gateway.logs };
    await memoryOf(process);
    return (await memoryOf(process)).heapUsed;
  };
  await churnConnections(gateway, 500);
  await churnRooms(gateway, 200);
  const before = await heap();
  await churnConnections(gateway, 4000);
  const connected = await heap();
  await churnRooms(gateway, 1000);
  const opened = await heap();
  // An idle session takes 5 KB of heap, an open room 3 KB.
  expect((connected - before) / 4000, 'bytes left of a connection').toBeLessThan(500);
  expect((opened - connected) / 1000, 'bytes left of a room').toBeLessThan(1000);
}, 120_000);
