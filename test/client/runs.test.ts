import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { foldParts } from '../../src/protocol/fold.js';
import { scoreOf } from '../e2e/run-score.js';
import { startPair, Undo } from '../e2e/run-stage.js';
import { BareWorker } from '../e2e/run-workers.js';
import { eventually } from '../support/eventually.js';
import type { GatewayProcess } from '../support/gateway.js';
import { startProxy } from '../support/proxy.js';
import { DEV_SERVER_KEY } from '../support/tokens.js';
import { type Listener, listen, newClient, note } from './stage.js';

const shared = new Undo();
const undo = new Undo();
let a: GatewayProcess;
let b: GatewayProcess;
let number = 0;

beforeAll(async () => {
  ({ a, b } = await startPair(shared, { env: { TUTTI_RUN_LEASE_MS: '2000', TUTTI_RUN_SWEEP_MS: '200' } }));
});
afterEach(() => undo.all());
afterAll(() => shared.all());

const client = (url: string, user?: string) => undo.add(newClient(url, user), (one) => one.close());
const reader = async (url: string, room: string): Promise<Listener> => {
  const made = listen(client(url), room, { recent: 20 });
  await made.joined();
  return made;
};
const worker = async (url: string, model: string) =>
  undo.add(await BareWorker.connect(url, { models: [model] }), (one) => one.close());
const fresh = () => ({ room: `runs-${++number}`, model: `model-${number}` });
const output = (listener: Listener, run: string) => JSON.stringify(listener.room.runs.output(run));
const folded = (label: string, count: number, upTo = count) =>
  JSON.stringify(foldParts(scoreOf(label, count).slice(0, upTo)));
const view = (listener: Listener, run: string) => listener.room.runs.get(run);
const shows = (listener: Listener, run: string, parts: number) =>
  eventually(`${parts} parts`, () => view(listener, run)?.next === parts);
const ended = (listener: Listener, run: string) => eventually('the run ends', () => view(listener, run)?.final);

test('[RUN1][RUN4] output is folded as it streams, the same for those who came late, and replaced by the final message', async () => {
  const { room, model } = fresh();
  const near = await reader(a.url, room);
  const far = await reader(b.url, room);
  const score = scoreOf('late', 60);
  const run = await near.room.createRun(model, { prompt: 'play' });
  const player = await worker(a.url, model);
  const assignment = await player.assignment(run.id);
  await player.push(assignment, 0, score.slice(0, 20));
  for (const one of [near, far]) {
    await shows(one, run.id, 20);
    expect(output(one, run.id)).toBe(folded('late', 60, 20));
    expect(view(one, run.id)).toMatchObject({
      state: 'streaming',
      attempt: 1,
      final: false,
      input: { prompt: 'play' },
    });
  }
  const late = await reader(b.url, room);
  await shows(late, run.id, 20);
  expect(output(late, run.id)).toBe(folded('late', 60, 20));
  await player.push(assignment, 20, score.slice(20));
  for (const one of [near, far, late]) await shows(one, run.id, 60);
  await player.ask('run.finish', { run: run.id, fence: assignment.fence, n: 60, meta: { label: 'a model' } });
  const after = await reader(a.url, room);
  for (const one of [near, far, late, after]) {
    await ended(one, run.id);
    expect(output(one, run.id)).toBe(folded('late', 60));
    expect(view(one, run.id)).toMatchObject({ state: 'completed', next: 60, meta: { label: 'a model' } });
    expect(one.runs.at(-1)).toMatchObject({ state: 'completed', final: true });
  }
});

test('[RUN1][RUN2] another attempt: what the first one said is forgotten', async () => {
  const { room, model } = fresh();
  const one = await reader(b.url, room);
  const run = await one.room.createRun(model, {});
  const first = await worker(a.url, model);
  const lost = await first.assignment(run.id);
  await first.push(lost, 0, scoreOf('first', 40).slice(0, 25));
  await shows(one, run.id, 25);
  await first.ask('run.fail', {
    run: run.id,
    fence: lost.fence,
    error: { code: 'tired', message: 'Tired' },
    retryable: true,
  });
  first.close();
  const second = await worker(b.url, model);
  const assignment = await second.assignment(run.id);
  expect(assignment.attempt).toBe(2);
  expect(output(one, run.id)).toBe('[]');
  await second.push(assignment, 0, scoreOf('second', 40).slice(0, 12));
  await shows(one, run.id, 12);
  expect(output(one, run.id)).toBe(folded('second', 40, 12));
  expect(view(one, run.id)).toMatchObject({ attempt: 2, state: 'streaming' });
  await second.push(assignment, 12, scoreOf('second', 40).slice(12));
  await second.finish(assignment, 40);
  await ended(one, run.id);
  expect(output(one, run.id)).toBe(folded('second', 40));
  // No view ever held parts of both.
  const attempts = one.runs.map((seen) => seen.attempt);
  expect(attempts).toEqual([...attempts].sort());
});

test('[RUN1][RES1] a reader cut off in mid-stream comes back to the whole output, also where the run ended meanwhile', async () => {
  const { room, model } = fresh();
  const proxy = undo.add(await startProxy(a.port), (one) => one.close());
  const cut = await reader(`http://127.0.0.1:${proxy.port}`, room);
  const run = await cut.room.createRun(model, {});
  const player = await worker(b.url, model);
  const assignment = await player.assignment(run.id);
  const score = scoreOf('cut', 50);
  await player.push(assignment, 0, score.slice(0, 10));
  await shows(cut, run.id, 10);
  proxy.cut();
  await eventually('the loss is noticed', () => cut.room.state.status === 'joining');
  await player.push(assignment, 10, score.slice(10, 30));
  proxy.heal();
  await cut.joined();
  await shows(cut, run.id, 30);
  expect(output(cut, run.id)).toBe(folded('cut', 50, 30));
  proxy.cut();
  await eventually('the loss is noticed', () => cut.room.state.status === 'joining');
  await player.push(assignment, 30, score.slice(30));
  await player.finish(assignment, 50);
  proxy.heal();
  await ended(cut, run.id);
  expect(output(cut, run.id)).toBe(folded('cut', 50));
  expect(cut.events.filter((event) => event.type === 'run.completed')).toHaveLength(1);
});

test('[RUN3] Stop by the SDK: the worker hears of it, and what was said stays', async () => {
  const { room, model } = fresh();
  const one = await reader(a.url, room);
  const other = await reader(b.url, room);
  const run = await one.room.createRun(model, {});
  const player = await worker(b.url, model);
  const assignment = await player.assignment(run.id);
  await player.push(assignment, 0, scoreOf('stop', 40).slice(0, 15));
  await shows(other, run.id, 15);
  expect((await other.room.cancelRun(run.id)).state).toBe('cancelled');
  await eventually('the worker hears of it', () => player.cancelled.has(run.id));
  for (const seen of [one, other]) {
    await ended(seen, run.id);
    expect(view(seen, run.id)?.state).toBe('cancelled');
    expect(output(seen, run.id)).toBe(folded('stop', 40, 15));
  }
});

test('[LOG3][RUN2] a run asked for while the gateway is out of reach is made once, after the message before it', async () => {
  const { room, model } = fresh();
  const proxy = undo.add(await startProxy(a.port), (one) => one.close());
  const one = await reader(`http://127.0.0.1:${proxy.port}`, room);
  proxy.cut();
  await eventually('the loss is noticed', () => one.room.state.status === 'joining');
  const said = [note(one.room, 0), one.room.createRun(model, { i: 1 }), note(one.room, 2)] as const;
  proxy.heal();
  const [, run] = await Promise.all(said);
  await one.has(3);
  expect(one.events.map((event) => event.type)).toEqual(['note', 'run.created', 'note']);
  expect(view(one, run.id)).toMatchObject({ state: 'queued', input: { i: 1 } });
});

test('[RES1][RUN1] an erased room takes its runs along; a run of its successor is shown whole', async () => {
  const { room, model } = fresh();
  const plain = listen(client(b.url), room, { from: 'latest' });
  const newest = await reader(a.url, room);
  await plain.joined();
  const old = await newest.room.createRun(model, {});
  await eventually('both know of it', () => view(plain, old.id) && view(newest, old.id));
  await fetch(`${a.url}/v1/rooms/${room}`, {
    method: 'DELETE',
    headers: { authorization: `Bearer ${DEV_SERVER_KEY}` },
  });
  for (const one of [plain, newest]) await eventually('it is told', () => one.resets.length === 1);
  const run = await newest.room.createRun(model, {});
  const player = await worker(a.url, model);
  const assignment = await player.assignment(run.id);
  await player.push(assignment, 0, scoreOf('new', 30));
  await player.finish(assignment, 30);
  for (const one of [plain, newest]) {
    await ended(one, run.id);
    expect(output(one, run.id)).toBe(folded('new', 30));
  }
  for (const one of [plain, newest]) expect(one.room.runs.all().map((known) => known.id)).toEqual([run.id]);
});
