import { afterAll, beforeAll, expect, test } from 'vitest';
import { each } from '../../bench/support/measure.js';
import type { Announcement } from '../../src/core/bus.js';
import { type Clock, systemClock } from '../../src/core/clock.js';
import { restSizes } from '../../src/core/run-rest.js';
import type { RunStore } from '../../src/core/run-store.js';
import { RunViews } from '../../src/core/run-views.js';
import { watchRun } from '../../src/core/run-watch.js';
import type { Frame } from '../../src/protocol/frames.js';
import { VirtualClock } from '../core/virtual-clock.js';
import { delta, Gateway, input, random, room, stage, textOf, UnreliableExchange, user, worker } from '../runs/stage.js';
import { eventually } from '../support/eventually.js';
import { recordLog, recordMetrics } from '../support/telemetry.js';

/* What a gateway keeps of runs, and how much of it goes into one statement. */

const never = new AbortController().signal;
let on: Awaited<ReturnType<typeof stage>>;
beforeAll(async () => {
  on = await stage();
});
afterAll(() => on.end());

const exchange = () => new UnreliableExchange(random(1), { lose: 0, repeat: 0, delayMs: 0 });

/** Another gateway's views of the lobby, and the frames it pushed to readers. */
async function viewsOf(between: UnreliableExchange, store: RunStore, clock: Clock) {
  const pushed: Frame[] = [];
  const heard: Announcement[] = [];
  const rooms = { pushRun: (_: unknown, frame: Frame) => void pushed.push(frame), committed: () => undefined };
  const views = new RunViews({ store, log: recordLog(), rooms, metrics: recordMetrics(), clock, rest: restSizes });
  const bus = between.bus();
  bus.onMessage((key, message) => {
    heard.push(message);
    views.receive(key, message);
  });
  await bus.subscribe(room);
  await views.openRoom(room);
  return { views, bus, pushed, heard };
}

async function begin(at: Gateway, model: string): Promise<{ run: string; fence: number }> {
  await at.runs.create(user, { room: 'lobby', model, input, mid: undefined });
  const given = await at.runs.claim(worker, { models: [model], waitMs: 1000 }, never);
  if (!given) throw new Error('nothing to claim');
  return { run: given.run.id, fence: given.fence };
}

test('[LIM1] output of more than 500 runs is committed with more than one statement', async () => {
  const RUNS = 601;
  const sizes: number[] = [];
  let release = () => {};
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  const store: RunStore = {
    ...on.store,
    async commit(segments, leaseMs) {
      sizes.push(segments.length);
      if (sizes.length === 1) await held;
      return on.store.commit(segments, leaseMs);
    },
  };
  // A part is due as soon as it is there.
  const at = new Gateway(store, exchange().bus(), { segmentBytes: 1, leaseMs: 60_000 });
  const runs = await each(RUNS, 6, () => begin(at, 'many'));
  for (const { run, fence } of runs) await at.runs.push(worker, { run, fence, n: 0, parts: [delta('x')] });
  release();
  await eventually('all are committed', async () => {
    const live = await on.store.live([room]);
    return live.filter(({ committed }) => committed === 1).length === RUNS;
  });
  expect(sizes).toEqual([1, 500, 100]);
  for (const { run, fence } of runs.slice(0, 2)) expect(await at.runs.finish(worker, { run, fence })).toBeDefined();
  at.kill();
});

test('[SLOW1] a stream that reads slowly keeps 4096 parts in memory, and gets the rest from the store', async () => {
  const PARTS = 6000;
  const between = exchange();
  const at = new Gateway(on.store, between.bus());
  const { run, fence } = await begin(at, 'long');
  let reads = 0;
  const store: RunStore = {
    ...on.store,
    segments(...asked) {
      reads += 1;
      return on.store.segments(...asked);
    },
  };
  const { views, bus } = await viewsOf(between, store, systemClock);
  const stored = await on.store.get('acme', run);
  if (!stored) throw new Error('no such run');
  const got: string[] = [];
  let next = 0;
  let wake = () => {};
  const reading = new Promise<void>((resolve) => {
    wake = resolve;
  });
  const watching = watchRun(
    { store, bus, views, clock: systemClock },
    stored,
    undefined,
    {
      parts(_, n, parts) {
        expect(n).toBe(next);
        next += parts.length;
        got.push(textOf(parts));
      },
      reset: () => expect.unreachable('nothing starts over'),
      end: ({ length }) => expect(length).toBe(PARTS),
      drained: () => reading.then(() => true),
    },
    never,
  );
  const say = async (n: number, count: number) => {
    const parts = Array.from({ length: count }, (_, i) => delta(`${n + i} `));
    await at.runs.push(worker, { run, fence, n, parts });
    await eventually('it is seen', () => views.find(room, run)?.next === n + count);
  };
  await say(0, 1);
  await eventually('the stream has a part', () => next === 1);
  const kept: number[] = [];
  for (let n = 1; n < PARTS; n += 100) {
    await say(n, Math.min(100, PARTS - n));
    kept.push(views.find(room, run)?.tail.length ?? 0);
  }
  expect(Math.max(...kept)).toBeGreaterThan(3900);
  expect(Math.max(...kept)).toBeLessThanOrEqual(4096);
  const before = reads;
  wake();
  await eventually('the stream has all', () => next === PARTS);
  expect(reads).toBeGreaterThan(before);
  await at.runs.finish(worker, { run, fence });
  await watching;
  expect(got.join('')).toBe(Array.from({ length: PARTS }, (_, n) => `${n} `).join(''));
  views.close();
  at.kill();
});

test('[RUN1] a run that ended is remembered for 60 s, and then forgotten: what repeats its output brings it back neither way', async () => {
  const between = exchange();
  const at = new Gateway(on.store, between.bus());
  const { run, fence } = await begin(at, 'short');
  let looks = 0;
  const store: RunStore = {
    ...on.store,
    get(tenant, id) {
      if (id === run) looks += 1;
      return on.store.get(tenant, id);
    },
  };
  const clock = new VirtualClock();
  const { views, pushed, heard } = await viewsOf(between, store, clock);
  await at.runs.push(worker, { run, fence, n: 0, parts: [delta('all of it')] });
  await at.runs.finish(worker, { run, fence });
  const late = await eventually('its output and its end', () => {
    const chunk = heard.find(({ kind, key }) => kind === 'chunk' && key.startsWith(run));
    return chunk !== undefined && views.find(room, run) === undefined && chunk;
  });
  const told = pushed.length;
  expect(told).toBeGreaterThan(0);
  const repeat = async () => {
    views.receive(room, late);
    await new Promise((wait) => setTimeout(wait, 50));
  };
  await clock.run(59_000);
  await views.check();
  await repeat();
  expect(looks).toBe(0);
  await clock.run(2000);
  await views.check();
  await repeat();
  await eventually('it is looked up', () => looks === 1);
  await repeat();
  expect([looks, pushed.length]).toEqual([1, told]);
  expect(views.find(room, run)).toBeUndefined();
  views.close();
  at.kill();
});
