import type { Socket } from 'socket.io-client';
import { io } from 'socket.io-client';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { TuttiError } from '../../src/errors.js';
import type { Assignment } from '../../src/protocol/worker.js';
import { openStage, runOf, type Stage, tokenOf } from './stage.js';

let stage: Stage;
const workers: Socket[] = [];
beforeAll(async () => {
  stage = await openStage({ pingIntervalMs: 200, pingTimeoutMs: 5000 });
});
beforeEach(async () => {
  for (const worker of workers.splice(0)) worker.disconnect();
  await expect.poll(() => claims().length).toBe(0);
  stage.runs.waiting.length = 0;
  stage.runs.calls.length = 0;
  stage.runs.answer = { committed: 1, cancelled: false };
});
afterAll(async () => {
  for (const worker of workers) worker.disconnect();
  await stage.close();
});

const part = { type: 'text-delta', id: 't', delta: 'a' };
const assignment = (id: string): Assignment => ({
  run: runOf(id),
  input: { prompt: 'hi' },
  attempt: 1,
  fence: 1,
  leaseMs: 15_000,
  committed: 0,
});

async function worker(capacity = 1) {
  const socket = io(`${stage.url}/worker`, {
    transports: ['websocket'],
    auth: { key: tokenOf({ kind: 'worker', id: 'w' }) },
    reconnection: false,
    forceNew: true,
  });
  workers.push(socket);
  const pushes: unknown[][] = [];
  socket.onAny((...push) => pushes.push(push));
  await new Promise((resolve, reject) => socket.once('connect', () => resolve(0)).once('connect_error', reject));
  const ask = (name: string, payload: unknown) => socket.timeout(5000).emitWithAck(name, payload);
  expect(await ask('worker.ready', { models: ['m'], capacity })).toEqual({ ok: true });
  return { socket, pushes, ask };
}
const claims = () => stage.runs.waiting.filter(({ open }) => open);
const nextClaim = async (n: number) => {
  await expect.poll(() => stage.runs.waiting.length).toBeGreaterThanOrEqual(n);
  const claim = stage.runs.waiting[n - 1];
  if (!claim) throw new Error('no claim');
  return claim;
};

test('a worker gets runs up to its capacity, and the next when one ends', async () => {
  const { pushes, ask } = await worker(2);
  (await nextClaim(1)).give(assignment('r1'));
  (await nextClaim(2)).give(assignment('r2'));
  await expect.poll(() => pushes.length).toBe(2);
  expect(pushes[0]).toEqual(['run.assigned', assignment('r1')]);
  expect(stage.runs.waiting).toHaveLength(2);
  expect(await ask('run.push', { run: 'r1', fence: 1, n: 0, parts: [part] })).toEqual({
    ok: true,
    committed: 1,
    cancelled: false,
  });
  expect(await ask('run.finish', { run: 'r1', fence: 1 })).toMatchObject({ ok: true, run: { state: 'completed' } });
  await nextClaim(3);
  expect(await ask('run.fail', { run: 'r2', fence: 1, error: { code: 'x', message: 'y' } })).toMatchObject({
    ok: true,
  });
});

test('capacity 0 pauses, other models are asked for at once, and ready again resumes', async () => {
  const { ask } = await worker(1);
  await nextClaim(1);
  await ask('worker.ready', { models: ['m'], capacity: 0 });
  await expect.poll(() => claims().length).toBe(0);
  await ask('worker.ready', { models: ['other'], capacity: 1 });
  await expect.poll(() => claims().map(({ models }) => models)).toEqual([['other']]);
});

test('[RUN3] a cancelled run is pushed once and makes room', async () => {
  const { pushes } = await worker(1);
  (await nextClaim(1)).give(assignment('r1'));
  await expect.poll(() => pushes.length).toBe(1);
  stage.runs.cancels.emit('r1');
  stage.runs.cancels.emit('r1');
  await nextClaim(2);
  await expect.poll(() => pushes.length).toBe(2);
  expect(pushes[1]).toEqual(['run.cancelled', { run: 'r1' }]);
  expect(stage.runs.cancels.listenerCount('r1')).toBe(0);
});

test('the heartbeat of the connection renews what it holds, also a run it brought along', async () => {
  const { ask } = await worker(3);
  (await nextClaim(1)).give(assignment('r1'));
  await ask('run.push', { run: 'brought', fence: 4, n: 0, parts: [part] });
  await expect.poll(() => stage.runs.calls).toContain('heartbeat r1');
  await expect.poll(() => stage.runs.calls).toContain('heartbeat brought');
});

test('[RUN2] a run that was lost is refused, forgotten and makes room', async () => {
  const { ask } = await worker(1);
  (await nextClaim(1)).give(assignment('r1'));
  await ask('run.heartbeat', { run: 'r1', fence: 1 });
  stage.runs.answer = new TuttiError('fenced', 'Another worker has it.');
  expect(await ask('run.push', { run: 'r1', fence: 1, n: 0, parts: [part] })).toMatchObject({
    error: { code: 'fenced' },
  });
  await nextClaim(2);
  stage.runs.answer = new TuttiError('out_of_order', 'Next is 3.', { expected: 3 });
  expect(await ask('run.push', { run: 'r2', fence: 1, n: 0, parts: [part] })).toMatchObject({
    error: { code: 'out_of_order', expected: 3 },
  });
});

test('a worker that leaves: its claim is aborted, its runs are no longer renewed', async () => {
  const { socket } = await worker(2);
  (await nextClaim(1)).give(assignment('r1'));
  const pending = await nextClaim(2);
  await expect.poll(() => stage.runs.calls).toContain('heartbeat r1');
  socket.disconnect();
  await expect.poll(() => pending.open).toBe(false);
  await new Promise((resolve) => setTimeout(resolve, 100));
  stage.runs.calls.length = 0;
  await new Promise((resolve) => setTimeout(resolve, 600));
  expect(stage.runs.calls).toEqual([]);
  expect(stage.runs.cancels.listenerCount('r1')).toBe(0);
});

test('a run assigned just as the worker vanished is given back', async () => {
  const { socket } = await worker(1);
  const pending = await nextClaim(1);
  // The claim gets its run in the turn in which the abort would have ended it.
  const { give } = pending;
  pending.give = () => give(assignment('late'));
  socket.disconnect();
  await expect.poll(() => stage.runs.calls).toContain('fail late');
});

test('[LIM1] a worker that sends without waiting is refused past a bound, and goes on after it', async () => {
  const { ask } = await worker(0);
  let release = () => {};
  stage.runs.gate = new Promise((resolve) => {
    release = resolve;
  });
  const push = (n: number) => ask('run.push', { run: 'r', fence: 1, n, parts: [part] });
  const answers = Array.from({ length: 1100 }, (_, n) => push(n));
  expect(await answers.at(-1)).toMatchObject({ ok: false, error: { code: 'overloaded', retryable: true } });
  await expect.poll(() => stage.runs.calls.length).toBe(1000);
  release();
  stage.runs.gate = undefined;
  expect((await Promise.all(answers)).filter(({ ok }) => ok)).toHaveLength(1000);
  expect(await push(1000)).toMatchObject({ ok: true });
});

test('bad input gets a code', async () => {
  const { ask } = await worker(0);
  for (const [name, payload] of [
    ['worker.ready', { models: [], capacity: 1 }],
    ['run.push', { run: 'r', fence: 1, n: 0, parts: [{ type: 'nonsense' }] }],
    ['run.push', { run: 'r', fence: 0, n: 0, parts: [part] }],
    ['run.push', { run: 'r', fence: 1, n: -1, parts: [part] }],
    ['run.finish', { run: '../r', fence: 1 }],
    ['room.join', { room: 'a' }],
  ] as const) {
    expect(await ask(name, payload)).toMatchObject({ ok: false, error: { code: 'bad_request' } });
  }
});
