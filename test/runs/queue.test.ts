import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { systemClock } from '../../src/core/clock.js';
import { uuidv7 } from '../../src/core/run-id.js';
import { type Claimed, RunQueue } from '../../src/core/run-queue.js';
import type { RunStore } from '../../src/core/run-store.js';
import { eventually } from '../support/eventually.js';
import { recordLog, recordMetrics } from '../support/telemetry.js';
import { input, limits, random, stage, UnreliableExchange, worker } from './stage.js';

/* Workers that wait for runs: who is served first, and what it costs. */

let on: Awaited<ReturnType<typeof stage>>;
let queue: RunQueue;
let asked = 0;
const never = () => new AbortController().signal;

beforeAll(async () => {
  on = await stage();
});
afterAll(() => on.end());
beforeEach(() => {
  asked = 0;
  const store: RunStore = {
    ...on.store,
    claim(claim) {
      asked += 1;
      return on.store.claim(claim);
    },
  };
  const bus = new UnreliableExchange(random(1), { lose: 0, repeat: 0, delayMs: 0 }).bus();
  const deps = { store, bus, metrics: recordMetrics(), log: recordLog(), limits, clock: systemClock };
  // Not started: nothing looks by itself.
  queue = new RunQueue(deps, async () => expect.unreachable('somebody is there for every run'));
});
afterEach(() => queue.close());

const create = (model: string) =>
  on.store.create(
    {
      id: uuidv7(),
      tenant: 'acme',
      room: 'lobby',
      model,
      input,
      initiator: { kind: 'user', id: 'ann' },
      mid: undefined,
    },
    { livePerTenant: 1000, livePerRoom: 1000, maxAttempts: 2, queueTtlMs: 60_000 },
  );

test('workers are served in the order they came, whatever models they ask for, and who has left costs nobody a turn', async () => {
  const served: string[] = [];
  const wait = (name: string, models: string[], signal = never()) =>
    queue.claim(worker, { models, waitMs: 60_000 }, signal).then((claimed: Claimed | undefined) => {
      if (claimed) served.push(`${name} ${claimed.run.model}`);
    });
  const gone = new AbortController();
  const waiting = [
    wait('one', ['a']),
    wait('two', ['a', 'b']),
    wait('three', ['c']),
    wait('four', ['a'], gone.signal),
    wait('five', ['b', 'a']),
    wait('six', ['a']),
    wait('seven', ['a', 'b']),
    wait('eight', ['a']),
  ];
  await eventually('they were told that there is nothing', () => asked >= 3);
  for (let n = 0; n < 5; n++) await create('a');
  await create('c');
  gone.abort();
  queue.wake();
  await eventually('all are served', () => served.length === 6);
  expect(served).toEqual(['one a', 'two a', 'three c', 'five a', 'six a', 'seven a']);
  queue.drain();
  await Promise.all(waiting);
});

test('a claim costs one query, however many others wait for other models', async () => {
  const waiting: Promise<unknown>[] = [];
  for (let n = 0; n < 90; n++) {
    const key = { ...worker, id: `w${n % 3}` };
    waiting.push(queue.claim(key, { models: [`kind-${n}`], waitMs: 60_000 }, never()));
    await eventually('it was asked', () => asked > n);
  }
  expect(asked).toBe(90);
  queue.wake();
  await eventually('a hint is for all', () => asked === 180);
  queue.drain();
  expect(await Promise.all(waiting)).toEqual(waiting.map(() => undefined));
});
