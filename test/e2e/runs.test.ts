import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { foldParts } from '../../src/protocol/fold.js';
import type { Part } from '../../src/protocol/parts.js';
import { eventually } from '../support/eventually.js';
import type { GatewayProcess } from '../support/gateway.js';
import { startPostgres } from '../support/postgres.js';
import { startRedis } from '../support/redis.js';
import { scoreOf } from './run-score.js';
import { call, sleep, startPair, storedRun, Undo, userToken } from './run-stage.js';
import { RunStream, RunViewer } from './run-viewers.js';
import { BareWorker, HttpWorker, play, startBalancer, startWorkerProcess } from './run-workers.js';

const COUNT = 60;
const undo = new Undo();
afterEach(() => undo.all());

async function newRun(viewer: RunViewer, mid?: string): Promise<string> {
  const input = { prompt: 'play' };
  const { run } = await viewer.client.call('run.create', {
    room: viewer.room,
    model: 'score',
    input,
    ...(mid ? { mid } : {}),
  });
  return run.id;
}

/** Every viewer and the database hold the whole score and the same one end. */
async function expectWhole(url: string, token: string, run: string, score: unknown[], viewers: RunViewer[]) {
  const stored = await storedRun(url, token, run);
  const folded = JSON.stringify(foldParts(score as never));
  expect(stored).toMatchObject({ state: 'completed', length: score.length });
  expect(JSON.stringify(stored.output)).toBe(folded);
  for (const viewer of viewers) {
    const { type, data } = await viewer.ended(run);
    expect(type).toBe('run.completed');
    expect(data.message.role).toBe('assistant');
    expect(JSON.stringify(data.message.parts)).toBe(folded);
    expect(viewer.finals(run)).toHaveLength(1);
    expect(viewer.faults).toEqual([]);
  }
}

describe('two gateways, nothing fails', () => {
  const shared = new Undo();
  let a: GatewayProcess;
  let b: GatewayProcess;
  let token: string;
  beforeAll(async () => {
    ({ a, b } = await startPair(shared));
    token = await userToken('ann');
  });
  afterAll(() => shared.all());

  const score = (_run: string, attempt: number) => scoreOf(`w-${attempt}`, COUNT);
  const view = async (gateway: GatewayProcess, room: string) =>
    undo.add(await RunViewer.join(gateway.url, { room, token, score }), (viewer) => viewer.close());
  const stream = async (gateway: GatewayProcess, run: string, last?: string) =>
    undo.add(await RunStream.open(gateway.url, token, run, last), (one) => one.close());

  test('[RUN1][RUN4] viewers of both gateways, streams and a late joiner hold the same bytes as the worker', async () => {
    const near = await view(b, 'concert');
    const far = await view(a, 'concert');
    const worker = undo.add(await BareWorker.connect(b.url), (one) => one.close());
    const run = await newRun(far);
    const streams = [await stream(a, run), await stream(b, run)];
    const assignment = await worker.assignment(run);
    expect(assignment).toMatchObject({ input: { prompt: 'play' }, attempt: 1, committed: 0 });
    const parts = scoreOf('w-1', COUNT);
    await play(worker, assignment, parts, { to: 30 });
    await far.reaches(run, 25);
    const late = await view(a, 'concert');
    const joinedAt = late.runs.get(run);
    expect(joinedAt?.next).toBeGreaterThanOrEqual(25);
    expect(joinedAt?.parts.length).toBeLessThan(10);
    await play(worker, assignment, parts, { from: 30 });
    await worker.finish(assignment, COUNT);

    await expectWhole(a.url, token, run, parts, [near, far, late]);
    for (const one of streams) {
      await one.closed;
      expect(one.faults).toEqual([]);
      expect(one.done).toBe(true);
      expect(JSON.stringify(one.parts)).toBe(JSON.stringify(parts));
    }
    // The same bytes again for one who comes after the end.
    const after = await stream(b, run);
    await after.closed;
    expect(JSON.stringify(after.parts)).toBe(JSON.stringify(parts));
    expect(after.done).toBe(true);
  });

  test('[RUN1] a worker over HTTP whose body stays open is read as its lines arrive', async () => {
    const far = await view(a, 'http');
    const worker = new HttpWorker(b.url);
    const claim = worker.claim();
    const run = await newRun(far);
    const assignment = await claim;
    if (!assignment) throw new Error('nothing was claimed');
    expect(assignment.run.id).toBe(run);
    const parts = scoreOf('w-1', COUNT);
    const body = undo.add(worker.open(assignment), (one) => one.destroy());
    for (const [n, part] of parts.slice(0, 20).entries()) body.send(n, part);
    // What was sent is there although the body is not over, and cut anywhere it is the same.
    await far.reaches(run, 20);
    const line = Buffer.from(`${JSON.stringify({ n: 20, part: parts[20] })}\n`);
    for (const byte of line) {
      body.write(Uint8Array.of(byte));
      if (byte > 127) await sleep(2);
    }
    await far.reaches(run, 21);
    for (const [i, part] of parts.slice(21).entries()) body.send(21 + i, part);
    expect(await body.end()).toMatchObject({ status: 200, body: { cancelled: false } });
    const usage = { inputTokens: 3, outputTokens: COUNT };
    const meta = { label: 'HTTP' };
    const finished = await worker.post(assignment, 'finish', { n: COUNT, usage, meta });
    expect(finished).toMatchObject({ status: 200, body: { run: { state: 'completed', usage } } });
    const { data } = await far.ended(run);
    expect(data).toMatchObject({ meta, run: { usage } });
    await expectWhole(b.url, token, run, parts, [far]);
    // A repeat of the end says the same and makes no second one.
    expect(await worker.post(assignment, 'finish', { usage })).toMatchObject({
      status: 200,
      body: { run: { state: 'completed' } },
    });
    await sleep(100);
    expect(far.finals(run)).toHaveLength(1);
  });

  test('[RUN3] a cancel on the other gateway reaches workers over a socket and over HTTP', async () => {
    const viewer = await view(a, 'cancel');
    const socketWorker = undo.add(await BareWorker.connect(b.url), (one) => one.close());
    const first = await newRun(viewer);
    const held = await socketWorker.assignment(first);
    const http = new HttpWorker(b.url);
    const claim = http.claim();
    const second = await newRun(viewer);
    const claimed = await claim;
    if (!claimed) throw new Error('nothing was claimed');
    const parts = scoreOf('w-1', COUNT);
    await play(socketWorker, held, parts, { to: 20 });
    const body = undo.add(http.open(claimed), (one) => one.destroy());
    for (const [n, part] of parts.slice(0, 20).entries()) body.send(n, part);
    await viewer.reaches(first, 20);
    await viewer.reaches(second, 20);

    for (const run of [first, second]) {
      const { run: ended } = await viewer.client.call('run.cancel', { run });
      expect(ended).toMatchObject({ id: run, state: 'cancelled' });
    }
    await eventually('the worker hears of it', () => socketWorker.cancelled.has(first), 3000);
    expect(await body.answer).toMatchObject({ status: 200, body: { cancelled: true } });
    // What comes too late is taken by nobody and told so.
    expect(await socketWorker.push(held, 20, parts.slice(20, 21))).toMatchObject({ cancelled: true });
    expect(await http.post(claimed, 'heartbeat')).toMatchObject({ status: 200, body: { cancelled: true } });
    expect(await http.post(claimed, 'finish')).toMatchObject({ body: { run: { state: 'cancelled' } } });
    for (const run of [first, second]) {
      const { type, data } = await viewer.ended(run);
      expect(type).toBe('run.cancelled');
      // A cancel by another gateway keeps what was committed, a prefix.
      const output = JSON.stringify(foldParts(parts.slice(0, data.run.length)));
      expect(JSON.stringify(data.message.parts)).toBe(output);
      expect(JSON.stringify((await storedRun(b.url, token, run)).output)).toBe(output);
      const again = await viewer.client.call('run.cancel', { run });
      expect(again.run).toMatchObject({ state: 'cancelled' });
    }
    await sleep(200);
    for (const run of [first, second]) expect(viewer.finals(run)).toHaveLength(1);
    expect(viewer.faults).toEqual([]);
    // The socket worker has room again.
    const third = await newRun(viewer);
    await socketWorker.finish(await socketWorker.assignment(third), 0);
    expect((await viewer.ended(third)).type).toBe('run.completed');
  });

  test('[RUN1][RUN2] one worker over HTTP may use another gateway for each request', async () => {
    const viewers = [await view(a, 'balanced'), await view(b, 'balanced')];
    const [viewer] = viewers;
    if (!viewer) throw new Error('no viewer');
    const [near, far] = [new HttpWorker(a.url), new HttpWorker(b.url)];
    const claim = near.claim();
    const run = await newRun(viewer);
    const assignment = await claim;
    if (!assignment) throw new Error('nothing was claimed');
    const parts = scoreOf('w-1', COUNT);
    const lines = async (worker: HttpWorker, from: number, to: number) => {
      const body = worker.open(assignment);
      for (const [i, part] of parts.slice(from, to).entries()) body.send(from + i, part);
      return (await body.end()).body as { committed?: number; expected?: number };
    };
    await lines(far, 0, 20);
    // The next gateway knows what is committed only; it says where to go on.
    for (let at = 20; at < COUNT; ) {
      const worker = at % 2 === 0 ? near : far;
      const { expected } = await lines(worker, at, Math.min(at + 13, COUNT));
      if (expected === undefined) at = Math.min(at + 13, COUNT);
      else at = Math.min(at, expected);
    }
    // The one that finishes may lack what the other has not committed yet: no run ends truncated.
    for (const worker of [near, far]) {
      for (;;) {
        const { status, body } = await worker.post(assignment, 'finish', { n: COUNT });
        if (status === 200) break;
        expect(body).toMatchObject({ code: 'out_of_order' });
        const { expected = 0 } = body as { expected?: number };
        await lines(worker, expected, COUNT);
      }
    }
    await expectWhole(b.url, token, run, parts, viewers);

    // What is committed is kept by nobody, so a gateway must not ask for it again.
    const again = near.claim();
    const next = await newRun(viewer);
    const second = await again;
    if (!second) throw new Error('nothing was claimed');
    const body = far.open(second);
    for (const [n, part] of parts.entries()) body.send(n, part);
    await body.end();
    await eventually('all is committed', async () => {
      const { body: reply } = await far.post(second, 'heartbeat');
      return (reply as { committed: number }).committed === COUNT;
    });
    expect(await near.post(second, 'finish', { n: COUNT })).toMatchObject({ status: 200 });
    await expectWhole(a.url, token, next, parts, viewers);
    for (const one of viewers) expect(one.resets).toEqual([]);
  });

  test('[RUN3] viewers that leave cancel nothing', async () => {
    const viewer = await view(a, 'leave');
    const worker = undo.add(await BareWorker.connect(b.url), (one) => one.close());
    const run = await newRun(viewer);
    const one = await stream(a, run);
    const assignment = await worker.assignment(run);
    const parts = scoreOf('w-1', COUNT);
    await play(worker, assignment, parts, { to: 20 });
    await viewer.reaches(run, 10);
    viewer.close();
    one.close();
    await one.closed;
    const reply = await play(worker, assignment, parts, { from: 20 });
    expect(reply.cancelled).toBe(false);
    await worker.finish(assignment, COUNT);
    const back = await view(b, 'leave');
    const { events } = await back.client.call('event.history', { room: 'leave', order: 'asc' });
    expect(events.map(({ type }: { type: string }) => type)).toEqual(['run.created', 'run.completed']);
    expect((await storedRun(a.url, token, run)).output).toEqual(foldParts(parts));
    // A stream that resumes in another place of the output goes on from there.
    const from = `1:${COUNT - 10}`;
    const rest = await stream(b, run, from);
    await rest.closed;
    expect(rest.faults).toEqual([]);
    expect(rest.parts).toEqual(parts.slice(COUNT - 9));
  });

  test('[RUN2] run.create with one mid makes one run, whoever asks at the same time', async () => {
    const viewer = await view(a, 'mids');
    const other = await view(b, 'mids');
    const made = await Promise.all([viewer, other, viewer, other].map((one) => newRun(one, 'mid-1')));
    expect(new Set(made).size).toBe(1);
    const run = made[0] ?? '';
    const http = await call(b.url, token, 'POST', '/v1/rooms/mids/runs', { model: 'score', input: {}, mid: 'mid-1' });
    expect(http).toMatchObject({ status: 200, body: { run: { id: run } } });
    const stranger = await call(a.url, await userToken('bob'), 'POST', '/v1/rooms/mids/runs', {
      model: 'score',
      input: {},
      mid: 'mid-1',
    });
    expect(stranger).toMatchObject({ status: 409, body: { code: 'conflict' } });
    await viewer.client.call('run.cancel', { run });
    for (const one of [viewer, other]) {
      await one.ended(run);
      expect(one.events.filter(({ type }) => type === 'run.created')).toHaveLength(1);
      expect(one.faults).toEqual([]);
    }
  });

  test('[RUN1][RUN4] many runs at once, pushed without waiting, with viewers that come and go: all hold the same bytes', async () => {
    const count = 40;
    const scores = new Map<string, Part[]>();
    const joined = async (gateway: GatewayProcess) =>
      undo.add(await RunViewer.join(gateway.url, { room: 'tutti', token, score: (run) => scores.get(run) }), (one) =>
        one.close(),
      );
    const viewers = [await joined(a), await joined(b)];
    const workers = await Promise.all([a, b, a, b].map(({ url }) => BareWorker.connect(url, { capacity: 4 })));
    for (const worker of workers) undo.add(worker, (one) => one.close());
    const runs = await Promise.all(
      Array.from({ length: 16 }, async (_, i) => {
        const viewer = viewers[i % 2];
        if (!viewer) throw new Error('no viewer');
        return newRun(viewer);
      }),
    );
    for (const run of runs) scores.set(run, scoreOf(run.slice(-6), count));
    const assigned = () => workers.flatMap((worker) => worker.assigned.map((assignment) => ({ worker, assignment })));
    await eventually('all are assigned', () => assigned().length === runs.length);
    let open = () => {};
    const everybodyIsHere = new Promise<void>((resolve) => {
      open = resolve;
    });
    const playing = assigned().map(async ({ worker, assignment }, i) => {
      const parts = scores.get(assignment.run.id) ?? [];
      const pushes: Promise<unknown>[] = [];
      for (let n = 0; n < parts.length; n += 3) {
        if (n === 30) await everybodyIsHere;
        pushes.push(worker.push(assignment, n, parts.slice(n, n + 3)));
        if ((n + i) % 2 === 0) await sleep(15);
      }
      await Promise.all(pushes);
      await worker.finish(assignment, count);
    });
    for (const gateway of [a, b, a, b]) {
      await sleep(40);
      viewers.push(await joined(gateway));
    }
    const mover = viewers[2];
    await mover?.moveTo(b.url);
    open();
    await Promise.all(playing);
    for (const run of runs)
      await Promise.all(viewers.map((viewer) => viewer.client.until(() => viewer.finals(run)[0])));
    for (const run of runs) await expectWhole(a.url, token, run, scores.get(run) ?? [], viewers);
  });

  test('[RUN3] of a cancel and an end at the same time one wins, everywhere', async () => {
    const viewer = await view(a, 'race');
    const other = await view(b, 'race');
    const worker = undo.add(await BareWorker.connect(b.url, { capacity: 12 }), (one) => one.close());
    const parts = scoreOf('w-1', COUNT);
    for (let i = 0; i < 12; i++) {
      const run = await newRun(viewer);
      const assignment = await worker.assignment(run);
      await worker.push(assignment, 0, parts.slice(0, 10 + i));
      const [, cancelled] = await Promise.all([
        worker.finish(assignment),
        sleep(i % 4).then(() => (i % 2 === 0 ? viewer : other).client.call('run.cancel', { run })),
      ]);
      const stored = await storedRun(b.url, token, run);
      expect(stored.state).toBe(cancelled.run.state);
      for (const one of [viewer, other]) {
        const { type, data } = await one.ended(run);
        expect(type).toBe(`run.${stored.state}`);
        expect(data.message.parts).toEqual(stored.output);
        expect(stored.output).toEqual(foldParts(parts.slice(0, stored.length)));
      }
      if (stored.state === 'completed') expect(stored.length).toBe(10 + i);
    }
    const queued = (await viewer.client.call('run.create', { room: 'race', model: 'nobody', input: {} })).run.id;
    expect((await other.client.call('run.cancel', { run: queued })).run).toMatchObject({
      state: 'cancelled',
      length: 0,
    });
    await viewer.ended(queued);
    for (const one of [viewer, other]) expect(one.faults).toEqual([]);
  });
});

describe('something fails in mid-stream', () => {
  const score = (_run: string, attempt: number) => scoreOf(`sdk-${attempt}`, 120);
  const view = async (url: string, room: string, token: string) =>
    undo.add(await RunViewer.join(url, { room, token, score }), (viewer) => viewer.close());
  /** The SDK's worker behind a balancer that points at `gateway`. */
  const sdkWorker = async (gateway: GatewayProcess) => {
    const balancer = undo.add(await startBalancer(gateway.port), (one) => one.close());
    const worker = startWorkerProcess({ url: balancer.url, label: 'sdk', count: 120, everyMs: 25 });
    undo.add(worker, (one) => one.end('SIGKILL'));
    return { balancer, worker };
  };

  test("[RUN1][RUN2] kill -9 of the worker's gateway costs no byte: the worker goes on at the other", async () => {
    const { a, b } = await startPair(undo);
    const token = await userToken('ann');
    const { balancer, worker } = await sdkWorker(b);
    const far = await view(a.url, 'crash', token);
    const near = await view(b.url, 'crash', token);
    const run = await newRun(far);
    const next = await newRun(far);
    const stream = undo.add(await RunStream.open(b.url, token, run), (one) => one.close());
    await near.reaches(run, 30);
    await far.reaches(run, 30);
    balancer.point(a.port);
    await b.kill9();
    await stream.closed;
    expect(stream.done).toBe(false);
    await near.moveTo(a.url);
    const resumed = undo.add(await RunStream.open(a.url, token, run, stream.lastEventId), (one) => one.close());
    await far.ended(run);
    await resumed.closed;
    await expectWhole(a.url, token, run, scoreOf('sdk-1', 120), [near, far]);
    expect(far.resets).toEqual([]);
    expect([...stream.faults, ...resumed.faults]).toEqual([]);
    expect(resumed.done).toBe(true);
    // It has room for one run, at the new gateway too.
    await far.ended(next);
    const lines = worker.output().split('\n');
    expect(lines.filter((line) => / [0-9a-f-]{36}$/.test(line))).toEqual([
      `begin ${run}`,
      `end ${run}`,
      `begin ${next}`,
      `end ${next}`,
    ]);
    expect(JSON.stringify([...stream.parts, ...resumed.parts])).toBe(JSON.stringify(scoreOf('sdk-1', 120)));
  });

  test('[RUN2] a worker over HTTP whose gateway was killed goes on at the other from what is committed', async () => {
    const { a, b } = await startPair(undo);
    const token = await userToken('ann');
    const far = await view(a.url, 'crash', token);
    const claim = new HttpWorker(b.url).claim();
    const run = await newRun(far);
    const assignment = await claim;
    if (!assignment) throw new Error('nothing was claimed');
    const parts = scoreOf('sdk-1', 120);
    const body = undo.add(new HttpWorker(b.url).open(assignment), (one) => one.destroy());
    for (const [n, part] of parts.slice(0, 50).entries()) {
      body.send(n, part);
      await sleep(5);
    }
    await far.reaches(run, 50);
    await b.kill9();
    await expect(body.answer).rejects.toThrow();
    const other = new HttpWorker(a.url);
    const { status, body: reply } = await other.post(assignment, 'heartbeat');
    expect(status).toBe(200);
    const { committed } = reply as { committed: number };
    expect(committed).toBeLessThanOrEqual(50);
    // One who goes on where it stopped instead is told where to begin.
    if (committed < 50) {
      const hasty = other.open(assignment);
      hasty.send(50, { type: 'finish' });
      expect(await hasty.answer).toMatchObject({ status: 409, body: { code: 'out_of_order', expected: committed } });
    }
    const rest = other.open(assignment);
    for (const [i, part] of parts.slice(committed).entries()) rest.send(committed + i, part);
    expect(await rest.end()).toMatchObject({ status: 200, body: { cancelled: false } });
    expect(await other.post(assignment, 'finish', { n: 120 })).toMatchObject({ status: 200 });
    await expectWhole(a.url, token, run, parts, [far]);
    expect(far.resets).toEqual([]);
  });

  test('[RUN1][RUN2] a gateway that was frozen in mid-stream and wakes later mixes nothing in', async () => {
    const ping = { TUTTI_SOCKET_PING_INTERVAL_MS: '1000', TUTTI_SOCKET_PING_TIMEOUT_MS: '1000' };
    const { a, b } = await startPair(undo, { env: ping });
    const token = await userToken('ann');
    const far = await view(a.url, 'freeze', token);
    const near = await view(b.url, 'freeze', token);
    const { balancer } = await sdkWorker(b);
    const run = await newRun(far);
    await far.reaches(run, 30);
    balancer.point(a.port);
    b.signal('SIGSTOP');
    await far.reaches(run, 60);
    b.signal('SIGCONT');
    await near.moveTo(b.url);
    await far.ended(run);
    await expectWhole(a.url, token, run, scoreOf('sdk-1', 120), [near, far]);
    expect(far.resets).toEqual([]);
  });

  test('[RUN1] Redis dies in mid-stream and comes back: viewers everywhere go on meanwhile', async () => {
    const redis = undo.add(await startRedis(), (one) => one.stop());
    const { a, b } = await startPair(undo, { redisUrl: redis.url });
    const token = await userToken('ann');
    const far = await view(a.url, 'redis', token);
    const near = await view(b.url, 'redis', token);
    await sdkWorker(b);
    const run = await newRun(far);
    await far.reaches(run, 20);
    await redis.kill9();
    const before = far.runs.get(run)?.next ?? 0;
    await near.reaches(run, before + 20);
    // The other gateway reads what it is not told.
    await far.reaches(run, before + 10);
    await redis.start();
    await far.ended(run);
    await expectWhole(a.url, token, run, scoreOf('sdk-1', 120), [near, far]);
    expect(far.resets).toEqual([]);
    // And the bus works again.
    const next = await newRun(near);
    await far.reaches(next, 1);
    await far.client.call('run.cancel', { run: next });
    await near.ended(next);
    expect([...near.faults, ...far.faults]).toEqual([]);
  });

  test('[RUN1][RUN2] Postgres is killed in mid-stream: output goes on, and is whole when it returns', async () => {
    const postgres = undo.add(await startPostgres(), (one) => one.destroy());
    const { a, b } = await startPair(undo, { databaseUrl: postgres.url });
    const token = await userToken('ann');
    const far = await view(a.url, 'postgres', token);
    const near = await view(b.url, 'postgres', token);
    await sdkWorker(b);
    const run = await newRun(far);
    await far.reaches(run, 20);
    await postgres.kill9();
    // Even the worker's last word finds no database.
    await far.reaches(run, 120);
    await near.reaches(run, 120);
    await sleep(300);
    expect([...far.finals(run), ...near.finals(run)]).toEqual([]);
    await postgres.start();
    await far.ended(run, 30_000);
    await near.ended(run);
    await expectWhole(a.url, token, run, scoreOf('sdk-1', 120), [near, far]);
    expect(far.resets).toEqual([]);
  });

  test("[RUN1][DRN1] SIGTERM of the worker's gateway: the run goes on at the other, nothing is lost", async () => {
    const { a, b } = await startPair(undo);
    const token = await userToken('ann');
    const { balancer } = await sdkWorker(b);
    const far = await view(a.url, 'drain', token);
    const near = await view(b.url, 'drain', token);
    const run = await newRun(near);
    const stream = undo.add(await RunStream.open(b.url, token, run), (one) => one.close());
    await far.reaches(run, 30);
    balancer.point(a.port);
    const exit = b.term();
    await near.client.waitFor('session.closing', ({ reconnect }) => reconnect);
    await near.client.until(() => near.client.disconnects.length > 0, 'a disconnect');
    await near.moveTo(a.url);
    await stream.closed;
    const resumed = undo.add(await RunStream.open(a.url, token, run, stream.lastEventId), (one) => one.close());
    await far.ended(run);
    await resumed.closed;
    expect(await exit).toBe(0);
    await expectWhole(a.url, token, run, scoreOf('sdk-1', 120), [near, far]);
    expect(far.resets).toEqual([]);
    expect(JSON.stringify([...stream.parts, ...resumed.parts])).toBe(JSON.stringify(scoreOf('sdk-1', 120)));
  });

  test('[DRN1][RUN2] SIGTERM answers claims and open bodies; a worker over HTTP goes on at the other gateway', async () => {
    const { a, b } = await startPair(undo);
    const token = await userToken('ann');
    const far = await view(a.url, 'drain', token);
    const leaving = new HttpWorker(b.url);
    const claim = leaving.claim();
    const run = await newRun(far);
    const assignment = await claim;
    if (!assignment) throw new Error('nothing was claimed');
    const idle = leaving.claim(30_000);
    const parts = scoreOf('sdk-1', 120);
    const body = undo.add(leaving.open(assignment), (one) => one.destroy());
    for (const [n, part] of parts.slice(0, 40).entries()) body.send(n, part);
    await far.reaches(run, 40);
    const exit = b.term();
    expect(await idle).toBeUndefined();
    for (let n = 40; n < 120 && !body.answered && b.running(); n++) {
      const part = parts[n];
      if (part) body.send(n, part);
      await sleep(20);
    }
    const answer = await Promise.race([body.answer, exit]);
    expect(answer).toMatchObject({ status: 503, body: { code: 'draining', retryable: true } });
    expect(await exit).toBe(0);
    const other = new HttpWorker(a.url);
    const { body: reply } = await other.post(assignment, 'heartbeat');
    const { committed } = reply as { committed: number };
    // What viewers had seen before the drain was committed by it.
    expect(committed).toBeGreaterThanOrEqual(40);
    const rest = other.open(assignment);
    for (const [i, part] of parts.slice(committed).entries()) rest.send(committed + i, part);
    expect(await rest.end()).toMatchObject({ status: 200 });
    expect(await other.post(assignment, 'finish', { n: 120 })).toMatchObject({ status: 200 });
    await expectWhole(a.url, token, run, parts, [far]);
    expect(far.resets).toEqual([]);
  });
});
