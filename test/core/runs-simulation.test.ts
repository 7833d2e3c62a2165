import { describe, expect, test } from 'vitest';
import type { Principal } from '../../src/core/principal.js';
import type { JsonText } from '../../src/protocol/primitives.js';
import { key } from './feed-world.js';
import { StreamWitness } from './run-readers.js';
import { simulateRuns } from './run-simulation.js';
import { runWorld } from './run-world.js';
import { eachCrossing, eachSeed } from './seeds.js';
import { partsOf } from './sim-worker.js';
import { SimViewer, user } from './simulation.js';

const file = 'test/core/runs-simulation.test.ts';

describe('runs', () => {
  test('[RUN1] [RUN2] [RUN4] readers, streams and the store agree on every run, whatever fails', async () => {
    await eachSeed(file, 1000, simulateRuns);
  }, 600_000);

  test('[RUN1] [RUN2] a gateway may die at any await: every call of a port and every answer in short lives is tried', async () => {
    await eachCrossing(file, 4, simulateRuns);
  }, 120_000);

  test('[RUN1] a stream on a gateway where nobody reads the room hears of an end whose announcement was lost', async () => {
    const { run, fence, streamed, a, clock } = await streaming();
    a.bus.down = true;
    a.request(0, () => a.runs.push(worker, { run, fence, n: 0, parts: partsOf(fence, 0, 5) }));
    a.request(1, () => a.runs.finish(worker, { run, fence, n: 5 }));
    await clock.run(3000);
    expect([streamed.problem, streamed.ended?.state, streamed.from?.n]).toEqual([undefined, 'completed', 5]);
  });

  test('[RUN1] what was committed arrives though its announcement was lost and the worker says no more', async () => {
    const { run, fence, streamed, a, clock } = await streaming();
    a.bus.down = true;
    a.request(0, () => a.runs.push(worker, { run, fence, n: 0, parts: partsOf(fence, 0, 5) }));
    await clock.run(1500);
    expect([streamed.problem, streamed.ended, streamed.from?.n]).toEqual([undefined, undefined, 5]);
  });

  test('[RUN1] a room that cannot be opened takes nothing from the streams that hold its runs', async () => {
    const { run, fence, streamed, a, b, clock } = await streaming();
    b.line.away = true;
    const refused = expect(b.feeds.join(key, new SimViewer('v', b.outlet), 'start', () => {})).rejects.toMatchObject({
      code: 'log_unavailable',
    });
    await clock.run(200);
    await refused;
    b.line.away = false;
    expect(b.runs.join(key, 0).runs).toHaveLength(1);
    a.request(0, () => a.runs.push(worker, { run, fence, n: 0, parts: partsOf(fence, 0, 5) }));
    await clock.run(50);
    expect([streamed.problem, streamed.from?.n]).toEqual([undefined, 5]);
  });

  test('[RUN1] a stream that begins after a retry of which its gateway has not heard gets nothing of the attempt before', async () => {
    const { run, fence, a, b, clock, fences } = await streaming();
    a.request(0, () => a.runs.push(worker, { run, fence, n: 0, parts: partsOf(fence, 0, 5) }));
    await clock.run(20);
    b.bus.down = true;
    const error = { code: 'oom', message: 'Out of memory.' };
    await Promise.all([a.runs.fail(worker, { run, fence, error, retryable: true }), clock.run(100)]);
    const late = new StreamWitness(run, fences);
    const watcher = late.watcher(
      () => true,
      async () => true,
    );
    void b.request(0, () => b.runs.watch(user('u'), run, undefined, watcher, new AbortController().signal));
    await clock.run(3000);
    const claimed = a.runs.claim(worker, { models: ['m'], waitMs: 0 }, new AbortController().signal);
    await clock.run(50);
    const next = (await claimed)?.fence ?? 0;
    b.bus.restore();
    a.request(0, () => a.runs.push(worker, { run, fence: next, n: 0, parts: partsOf(next, 0, 3) }));
    await clock.run(1500);
    expect([late.problem, late.from]).toEqual([undefined, { attempt: 2, n: 3 }]);
  });

  test('[RUN1] a stream whose room is erased while it reads the last parts tells no end', async () => {
    const { run, fence, a, b, clock, world, fences } = await streaming();
    a.request(0, () => a.runs.push(worker, { run, fence, n: 0, parts: partsOf(fence, 0, 5) }));
    a.request(1, () => a.runs.finish(worker, { run, fence, n: 5 }));
    await clock.run(3000);
    const call = b.line.call.bind(b.line);
    let calls = 0;
    b.line.call = (work) => {
      // The run itself, the room's live runs, the run again, and now its parts.
      if (++calls === 4) world.rooms.erase(key);
      return call(work);
    };
    const late = new StreamWitness(run, fences);
    const watcher = late.watcher(
      () => true,
      async () => true,
    );
    let over = false;
    void b
      .request(0, () => b.runs.watch(user('u'), run, undefined, watcher, new AbortController().signal))
      .then(() => {
        over = true;
      });
    await clock.run(500);
    expect([calls >= 4, over, late.problem, late.ended]).toEqual([true, true, undefined, undefined]);
  });
});

const worker: Principal = { kind: 'worker', id: 'w', tenant: 't', capabilities: {} };

/** A run that a worker holds at `a`, with a stream of it at `b`, where nobody has joined its room. */
async function streaming() {
  const { world, fences, gateway } = runWorld(1, {
    bus: { drop: 0, repeat: 0, maxDelayMs: 1 },
    line: { maxDelayMs: 10, lose: 0 },
  });
  const { clock } = world;
  const [a, b] = [gateway(), gateway()];
  const asked = { room: 'r', model: 'm', input: '{}' as JsonText, mid: undefined };
  const creating = a.request(0, () => a.runs.create(user('u'), asked));
  await clock.run(100);
  const { run } = await creating;
  const claiming = a.request(0, () => a.runs.claim(worker, { models: ['m'], waitMs: 0 }, new AbortController().signal));
  await clock.run(100);
  const fence = (await claiming)?.fence ?? 0;
  const streamed = new StreamWitness(run.id, fences);
  const watcher = streamed.watcher(
    () => true,
    async () => true,
  );
  void b.request(0, () => b.runs.watch(user('u'), run.id, undefined, watcher, new AbortController().signal));
  await clock.run(100);
  return { run: run.id, fence, streamed, a, b, clock, world, fences };
}
