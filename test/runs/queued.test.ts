import { afterAll, beforeAll, expect, test } from 'vitest';
import { QueuedRuns } from '../../src/core/queued-runs.js';
import { uuidv7 } from '../../src/core/run-id.js';
import { queuedRuns } from '../../src/db/queued-runs.js';
import { VirtualClock } from '../core/virtual-clock.js';
import { recordMetrics } from '../support/telemetry.js';
import { input, sleep, stage } from './stage.js';

let on: Awaited<ReturnType<typeof stage>>;
beforeAll(async () => {
  on = await stage();
});
afterAll(() => on.end());

const create = (tenant: string) =>
  on.store.create(
    { id: uuidv7(), tenant, room: 'lobby', model: 'm', input, initiator: { kind: 'user', id: 'ann' }, mid: undefined },
    { livePerTenant: 10, livePerRoom: 10, maxAttempts: 2, queueTtlMs: 60_000 },
  );

test('[OPS1] runs that wait are counted over all tenants, with the age of the oldest; those that are taken are not', async () => {
  expect(await queuedRuns(on.database)).toEqual({ count: 0, oldestMs: 0 });
  await create('acme');
  await sleep(60);
  await create('beta');
  const { count, oldestMs } = await queuedRuns(on.database);
  expect(count).toBe(2);
  expect(oldestMs).toBeGreaterThanOrEqual(50);
  await on.store.claim({ tenant: null, models: ['m'], worker: 'w', leaseMs: 10_000, durationMaxMs: 60_000 });
  expect(await queuedRuns(on.database)).toMatchObject({ count: 1 });
});

test('[OPS1] scrapes ask nothing of the database, and one that does not answer is asked once', async () => {
  const clock = new VirtualClock();
  const metrics = recordMetrics();
  let asked = 0;
  let answer: Promise<{ count: number; oldestMs: number }> = Promise.resolve({ count: 3, oldestMs: 1500 });
  const queue = new QueuedRuns({
    queued: () => {
      asked += 1;
      return answer;
    },
    metrics,
    clock,
  });
  queue.start();
  await clock.run(0);
  for (let scrape = 0; scrape < 100; scrape += 1) expect(metrics.read('runs_queued')).toBe(3);
  expect([asked, metrics.read('runs_queued_oldest_seconds')]).toEqual([1, 1.5]);
  answer = new Promise(() => undefined);
  await clock.run(60_000);
  expect([asked, metrics.read('runs_queued')]).toEqual([2, 3]);
  queue.stop();
});
