import { afterAll, beforeAll, expect, test } from 'vitest';
import { createMemoryBus } from '../../src/bus/memory.js';
import type { RunStore } from '../../src/core/run-store.js';
import { TuttiError } from '../../src/errors.js';
import { delta, Gateway, input, random, sleep, stage, textOf, user, worker } from './stage.js';

let on: Awaited<ReturnType<typeof stage>>;
beforeAll(async () => {
  on = await stage();
});
afterAll(() => on.end());

test('[RUN1] while Postgres is away output is kept up to the limit, then refused; nothing is lost or doubled', async () => {
  let away = false;
  const chance = random(11);
  const store: RunStore = {
    ...on.store,
    commit: async (segments, leaseMs) => {
      if (away) throw new TuttiError('log_unavailable', 'away');
      const results = await on.store.commit(segments, leaseMs);
      // An outage may also lose the answer to what was committed.
      if (chance() < 0.3) throw new TuttiError('log_unavailable', 'answer lost');
      return results;
    },
  };
  const gateway = await new Gateway(store, createMemoryBus(), {
    uncommittedMaxBytes: 16 * 1024,
    leaseMs: 20_000,
  }).join();
  await gateway.runs.create(user, { room: 'lobby', model: 'm', input, mid: undefined });
  const given = await gateway.runs.claim(worker, { models: ['m'], waitMs: 1000 }, new AbortController().signal);
  const held = { run: given?.run.id ?? '', fence: given?.fence ?? 0 };
  const words = Array.from({ length: 100 }, (_, i) => `${i} ${'.'.repeat(400)}`);
  let refusals = 0;
  for (let n = 0; n < words.length; ) {
    away = n >= 20 && refusals < 3;
    try {
      await gateway.runs.push(worker, { ...held, n, parts: [delta(words[n] ?? '')] });
      n++;
    } catch (error) {
      expect(error).toMatchObject({ code: 'log_unavailable' });
      refusals++;
      expect(n).toBeGreaterThan(20);
    }
  }
  expect(refusals).toBeGreaterThanOrEqual(3);
  expect(gateway.problems).toEqual([]);
  await sleep(10);
  const done = await gateway.runs.finish(worker, held);
  expect(done).toMatchObject({ state: 'completed', length: 100 });
  const stored = await on.store.get('acme', held.run);
  expect(textOf(stored?.output ?? [])).toBe(words.join(''));
  expect(gateway.reader.text(held.run)).toBe(words.join(''));
  expect(gateway.metrics.read('runs_uncommitted_bytes')).toBe(0);
  gateway.kill();
});
