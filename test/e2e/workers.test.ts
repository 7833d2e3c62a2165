import { randomUUID } from 'node:crypto';
import { createServer, type IncomingMessage } from 'node:http';
import postgres from 'postgres';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { ownIssuer } from '../../src/core/auth.js';
import { openDatabase } from '../../src/db/database.js';
import { createDirectory } from '../../src/db/directory.js';
import { newKey } from '../../src/demo/bootstrap.js';
import { foldParts } from '../../src/protocol/fold.js';
import type { Part } from '../../src/protocol/parts.js';
import type { Run } from '../../src/protocol/runs.js';
import { runWorker } from '../../src/worker/index.js';
import { eventually } from '../support/eventually.js';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import type { Owned } from '../support/owned.js';
import { freshDatabase } from '../support/postgres.js';
import { DEV_WORKER_KEY } from '../support/tokens.js';
import { scoreOf } from './run-score.js';
import { call, sleep, startPair, storedRun, Undo, userToken } from './run-stage.js';
import { RunViewer, type Score } from './run-viewers.js';
import { BareWorker, HttpWorker, play, startWorkerProcess } from './run-workers.js';

const LEASE_MS = 2000;
/** RUN2: a lost worker's run is tried again or failed in this time. */
const LOST_MS = LEASE_MS + 5000;
const QUEUE_TTL_MS = 5000;
const LIVE_MAX = 24;
const COUNT = 200;
const OUTPUT_MAX_BYTES = 16 * 1024;

const shared = new Undo();
const undo = new Undo();
let a: GatewayProcess;
let b: GatewayProcess;
let databaseUrl: string;
let token: string;
beforeAll(async () => {
  const pair = await startPair(shared, {
    env: {
      TUTTI_RUN_LEASE_MS: String(LEASE_MS),
      TUTTI_SOCKET_PING_INTERVAL_MS: '1000',
      TUTTI_RUN_OUTPUT_MAX_BYTES: String(OUTPUT_MAX_BYTES),
      TUTTI_RUN_MAX_ATTEMPTS: '2',
      TUTTI_RUN_SWEEP_MS: '200',
      TUTTI_RUN_QUEUE_TTL_MS: String(QUEUE_TTL_MS),
      TUTTI_RUNS_LIVE_PER_TENANT: String(LIVE_MAX),
    },
  });
  ({ a, b } = pair);
  databaseUrl = pair.env.DATABASE_URL;
  token = await userToken('ann');
});
afterEach(() => undo.all());
afterAll(() => shared.all());

const view = async (gateway: GatewayProcess, room: string, score?: Score) =>
  undo.add(await RunViewer.join(gateway.url, { room, token, ...(score ? { score } : {}) }), (one) => one.close());

async function newRun(viewer: RunViewer, model: string): Promise<string> {
  const { run } = await viewer.client.call('run.create', { room: viewer.room, model, input: { prompt: 'play' } });
  return run.id;
}

/** A worker's process that serves one model, and says when it is at work. */
function worker(
  gateway: GatewayProcess,
  label: string,
  model: string,
): Owned & { begins(run: string): Promise<unknown> } {
  const process = startWorkerProcess({ url: gateway.url, label, model, count: COUNT, everyMs: 15 });
  undo.add(process, (one) => {
    one.signal('SIGCONT');
    return one.end('SIGKILL');
  });
  const begins = (run: string) => eventually(`${label} begins`, () => process.output().includes(`begin ${run}`));
  return { ...process, begins };
}

/** What the database says of runs that nobody may hold any more. */
async function liveRuns(): Promise<string[]> {
  const sql = postgres(databaseUrl, { max: 1, onnotice: () => undefined });
  try {
    const rows = await sql<{ id: string }[]>`
      select id from tutti.runs where state in ('queued', 'claimed', 'streaming')`;
    return rows.map(({ id }) => id);
  } finally {
    await sql.end();
  }
}

async function expectOutput(gateway: GatewayProcess, run: string, viewers: RunViewer[]): Promise<Run> {
  const stored = await storedRun(gateway.url, token, run);
  for (const viewer of viewers) {
    const { data } = await viewer.ended(run);
    expect(JSON.stringify(data.message.parts)).toBe(JSON.stringify(stored.output));
    expect(data.run.state).toBe(stored.state);
    expect(viewer.finals(run)).toHaveLength(1);
    expect(viewer.faults).toEqual([]);
  }
  return stored;
}

describe('workers that are lost', () => {
  test('[RUN2] a killed worker: the run is tried again by another, and failed when its attempts are used up', async () => {
    const score: Score = (_run, attempt) => scoreOf(`${attempt === 1 ? 'first' : 'second'}-${attempt}`, COUNT);
    const near = await view(a, 'lost', score);
    const far = await view(b, 'lost', score);
    const first = worker(a, 'first', 'lost');
    const run = await newRun(near, 'lost');
    await first.begins(run);
    const second = worker(b, 'second', 'lost');
    await far.reaches(run, 30);
    await first.kill9();
    for (const viewer of [near, far]) {
      const reset = await viewer.client.waitFor('run.reset', (push) => push.run === run, LOST_MS);
      expect(reset).toMatchObject({ attempt: 2, reason: 'worker_lost' });
    }
    await second.begins(run);
    await near.reaches(run, 30);
    await second.kill9();
    await far.ended(run, LOST_MS);
    const stored = await expectOutput(a, run, [near, far]);
    expect(stored).toMatchObject({ state: 'failed', attempt: 2, error: { code: 'worker_lost' } });
    expect(near.finals(run)[0]?.type).toBe('run.failed');
    expect(JSON.stringify((await storedRun(b.url, token, run)).output)).toBe(
      JSON.stringify(foldParts(scoreOf('second-2', COUNT).slice(0, stored.length))),
    );
    expect(await liveRuns()).toEqual([]);
  });

  test('[RUN2] a frozen worker that wakes after another took over is fenced; no byte of it is mixed in', async () => {
    const score: Score = (_run, attempt) => scoreOf(`${attempt === 1 ? 'zombie' : 'heir'}-${attempt}`, COUNT);
    const near = await view(a, 'zombie', score);
    const far = await view(b, 'zombie', score);
    const zombie = worker(a, 'zombie', 'zombie');
    const run = await newRun(far, 'zombie');
    await zombie.begins(run);
    await far.reaches(run, 30);
    zombie.signal('SIGSTOP');
    const heir = worker(b, 'heir', 'zombie');
    await far.client.waitFor('run.reset', (push) => push.run === run && push.attempt === 2, LOST_MS);
    await heir.begins(run);
    await far.reaches(run, 20);
    zombie.signal('SIGCONT');
    await eventually('the zombie is told', () => zombie.output().includes(`lost ${run}`));
    const { type } = await near.ended(run);
    expect(type).toBe('run.completed');
    const stored = await expectOutput(b, run, [near, far]);
    expect(stored).toMatchObject({ attempt: 2, length: COUNT });
    expect(near.finals(run)[0]?.data.message.parts).toEqual(foldParts(scoreOf('heir-2', COUNT)));
    expect(heir.output()).toContain(`end ${run}`);
    expect(await liveRuns()).toEqual([]);
  });

  test('[RUN2] whatever a worker sends under an old fence is refused, over sockets and over HTTP', async () => {
    const score: Score = (_run, attempt) => scoreOf(`w-${attempt}`, 20);
    const viewer = await view(b, 'fences', score);
    const silent = undo.add(await BareWorker.connect(a.url, { models: ['fences'] }), (one) => one.close());
    const http = new HttpWorker(a.url);
    const claim = (gateway: GatewayProcess) => new HttpWorker(gateway.url).claim(8000, ['fences']);
    const first = await newRun(viewer, 'fences');
    const old = await silent.assignment(first);
    const second = await newRun(viewer, 'fences');
    const oldHttp = await http.claim(5000, ['fences']);
    if (oldHttp?.run.id !== second) throw new Error('not the run that is due');
    await play(silent, old, scoreOf('w-1', 20), { to: 10, pauseMs: 1 });
    const body = undo.add(http.open(oldHttp), (one) => one.destroy());
    for (const [n, part] of scoreOf('w-1', 20).slice(0, 10).entries()) body.send(n, part);
    await viewer.reaches(first, 10);
    await viewer.reaches(second, 10);
    // Nothing is said for a lease.
    silent.close();
    const taken = await Promise.all([claim(a), claim(b)]);
    expect(taken.map((one) => one?.attempt)).toEqual([2, 2]);
    const heirs = taken.map((one) => {
      if (!one) throw new Error('nothing was claimed');
      return { assignment: one, worker: new HttpWorker(b.url) };
    });
    const back = undo.add(await BareWorker.connect(b.url, { capacity: 0 }), (one) => one.close());
    await expect(back.push(old, 10, scoreOf('w-1', 20).slice(10, 12))).rejects.toMatchObject({
      error: { code: 'fenced' },
    });
    await expect(back.finish(old)).rejects.toMatchObject({ error: { code: 'fenced' } });
    body.send(10, { type: 'text-delta', id: 't', delta: 'of the dead' });
    expect(await body.answer).toMatchObject({ status: 409, body: { code: 'fenced' } });
    expect(await http.post(oldHttp, 'heartbeat')).toMatchObject({ status: 409, body: { code: 'fenced' } });
    expect(await http.post(oldHttp, 'finish')).toMatchObject({ status: 409, body: { code: 'fenced' } });
    const error = { code: 'nope', message: 'no' };
    expect(await http.post(oldHttp, 'fail', { error })).toMatchObject({ status: 409, body: { code: 'fenced' } });
    for (const { assignment, worker: heir } of heirs) {
      const rest = heir.open(assignment);
      for (const [n, part] of scoreOf('w-2', 20).entries()) rest.send(n, part);
      expect(await rest.end()).toMatchObject({ status: 200 });
      expect(await heir.post(assignment, 'finish', { n: 20 })).toMatchObject({ status: 200 });
    }
    const whole = JSON.stringify(foldParts(scoreOf('w-2', 20)));
    for (const run of [first, second]) {
      const { data } = await viewer.ended(run);
      expect(JSON.stringify(data.message.parts)).toBe(whole);
      expect(viewer.finals(run)).toHaveLength(1);
    }
    expect(viewer.faults).toEqual([]);
  });
});

test('[RUN2] the open connection of a worker that has nothing to say keeps its lease', async () => {
  const viewer = await view(b, 'pensive');
  const pensive = undo.add(await BareWorker.connect(a.url, { models: ['pensive'] }), (one) => one.close());
  const run = await newRun(viewer, 'pensive');
  const assignment = await pensive.assignment(run);
  await pensive.push(assignment, 0, scoreOf('p', 8).slice(0, 2));
  await viewer.reaches(run, 2);
  await sleep(2 * LEASE_MS);
  await pensive.push(assignment, 2, scoreOf('p', 8).slice(2));
  expect(await pensive.finish(assignment, 8)).toMatchObject({ run: { state: 'completed', attempt: 1 } });
  await expectOutput(a, run, [viewer]);
});

test('[RUN2][RUN4] output past the limit fails the run with that reason, and no second attempt', async () => {
  const viewer = await view(b, 'flood', (_run, attempt) => scoreOf(`flood-${attempt}`, 5000));
  const flood = startWorkerProcess({ url: a.url, label: 'flood', model: 'flood', count: 5000, everyMs: 0 });
  undo.add(flood, (one) => one.end('SIGKILL'));
  const run = await newRun(viewer, 'flood');
  await viewer.client.until(() => (viewer.runs.get(run)?.next ?? 0) > 300, 'some output');
  const late = await view(a, 'flood', (_run, attempt) => scoreOf(`flood-${attempt}`, 5000));
  const { type } = await viewer.ended(run);
  expect(type).toBe('run.failed');
  const stored = await expectOutput(a, run, [viewer, late]);
  expect(stored).toMatchObject({ state: 'failed', attempt: 1, error: { code: 'payload_too_large' } });
  const { output } = await storedRun(a.url, token, run);
  const bytes = Buffer.byteLength(JSON.stringify(output));
  expect(bytes).toBeGreaterThan(OUTPUT_MAX_BYTES / 2);
  expect(bytes).toBeLessThanOrEqual(OUTPUT_MAX_BYTES * 1.1);
});

test('[RUN2] what a handler does wrong fails the run and leaves the worker free for the next', async () => {
  const viewer = await view(b, 'wrong');
  const wrongs = ['part', 'meta', 'throw'] as const;
  const serving = runWorker({
    url: a.url,
    key: DEV_WORKER_KEY,
    models: ['wrong'],
    capacity: 1,
    async *handle({ input }) {
      yield { type: 'text-start', id: 't' };
      if (input === 'part') yield { type: 'nonsense' } as never;
      if (input === 'throw') throw new Error('out of tune');
      return input === 'meta' ? { meta: 'long'.repeat(2000) } : undefined;
    },
  });
  undo.add(serving, (one) => one.stop(0));
  const runs = await Promise.all(
    [...wrongs, 'nothing'].map(async (input) => {
      const { run } = await viewer.client.call('run.create', { room: 'wrong', model: 'wrong', input });
      return run.id;
    }),
  );
  const ends = await Promise.all(runs.map((run) => viewer.ended(run)));
  expect(ends.map(({ data: { run } }) => [run.state, (run as Run).error?.code, (run as Run).attempt])).toEqual([
    ['failed', 'bad_request', 1],
    ['failed', 'payload_too_large', 1],
    ['failed', 'worker_failed', 1],
    ['completed', undefined, 1],
  ]);
  for (const run of runs) await expectOutput(a, run, [viewer]);
});

describe('the queue', () => {
  /** A tenant with keys of its own. */
  async function tenant(id: string): Promise<{ server: string; worker: string }> {
    const database = await openDatabase({ url: databaseUrl, poolSize: 2, appRole: 'tutti_app' });
    try {
      const directory = createDirectory(database);
      await directory.putTenant({ id, name: id, status: 'active' });
      const keys = { kind: 'hs256', secret: randomUUID() } as const;
      const iss = ownIssuer(id);
      await directory.putIssuer({
        id: randomUUID(),
        tenant: id,
        iss,
        audience: 'tutti',
        algorithms: ['HS256'],
        typ: null,
        keys,
      });
      return { server: await key(directory, id, 'server'), worker: await key(directory, id, 'worker') };
    } finally {
      await database.close();
    }
  }
  async function key(directory: ReturnType<typeof createDirectory>, owner: string | null, scope: 'server' | 'worker') {
    const made = newKey();
    await directory.putKey({ id: made.id, tenant: owner, scopes: [scope], hash: made.hash, name: scope });
    return made.key;
  }
  async function operatorKey(): Promise<string> {
    const database = await openDatabase({ url: databaseUrl, poolSize: 2, appRole: 'tutti_app' });
    try {
      return await key(createDirectory(database), null, 'worker');
    } finally {
      await database.close();
    }
  }
  const create = async (gateway: GatewayProcess, server: string, model: string) =>
    call(gateway.url, server, 'POST', '/v1/rooms/hall/runs', { model, input: 1 });
  const idOf = ({ body }: { body: unknown }) => (body as { run: Run }).run.id;

  test('[RUN2] a run that nobody takes expires, with one final event', async () => {
    const viewer = await view(a, 'expiry');
    const run = await newRun(viewer, 'nobody');
    const { type, data } = await viewer.ended(run, QUEUE_TTL_MS + 5000);
    expect(type).toBe('run.failed');
    expect(data).toMatchObject({ run: { state: 'expired', length: 0 }, message: { parts: [] } });
    expect(await storedRun(b.url, token, run)).toMatchObject({ state: 'expired', error: { code: 'expired' } });
    expect(await new HttpWorker(b.url).claim(0, ['nobody'])).toBeUndefined();
    expect(viewer.faults).toEqual([]);
  });

  test('[LIM1][RUN2] live runs of a tenant have a limit; each goes to one worker, however many claim at once', async () => {
    const acme = await tenant('acme');
    const beta = await tenant('beta');
    const ids = new Set<string>();
    for (let i = 0; i < LIVE_MAX; i++) {
      const made = await create(i % 2 === 0 ? a : b, acme.server, 'race');
      expect(made.status).toBe(201);
      ids.add(idOf(made));
    }
    expect(await create(a, acme.server, 'race')).toMatchObject({ status: 429, body: { code: 'quota_exceeded' } });
    expect(await create(b, beta.server, 'other')).toMatchObject({ status: 201 });

    // A worker of another tenant gets none of them, and may not touch one.
    expect(await new HttpWorker(a.url, beta.worker).claim(0, ['race'])).toBeUndefined();
    const claims = Array.from({ length: LIVE_MAX + 4 }, (_, i) => {
      return new HttpWorker(i % 2 === 0 ? a.url : b.url, acme.worker).claim(1000, ['race']);
    });
    const socket = undo.add(
      await BareWorker.connect(b.url, { key: acme.worker, models: ['race'], capacity: 4 }),
      (one) => one.close(),
    );
    const taken = [...(await Promise.all(claims)).flatMap((one) => one ?? []), ...socket.assigned];
    expect(taken.map((one) => one.run.id).sort()).toEqual([...ids].sort());
    const [one] = taken;
    if (!one) throw new Error('nothing was claimed');
    expect(await new HttpWorker(b.url, beta.worker).post(one, 'heartbeat')).toMatchObject({ status: 404 });
    for (const assignment of taken) {
      const done = await new HttpWorker(a.url, acme.worker).post(assignment, 'finish', { n: 0 });
      expect(done).toMatchObject({ status: 200, body: { run: { state: 'completed' } } });
    }
    // There is room again.
    expect((await create(a, acme.server, 'gone')).status).toBe(201);
  });

  test("[RUN2] the operator's worker serves tenants in turn, each under its own roof", async () => {
    const tenants = [await tenant('alto'), await tenant('basso')];
    const operator = await operatorKey();
    const owner = new Map<string, number>();
    for (let i = 0; i < 4; i++) owner.set(idOf(await create(a, tenants[0]?.server ?? '', 'op')), 0);
    for (let i = 0; i < 4; i++) owner.set(idOf(await create(b, tenants[1]?.server ?? '', 'op')), 1);
    const turns: number[] = [];
    for (let i = 0; i < 8; i++) {
      const http = new HttpWorker(i % 2 === 0 ? a.url : b.url, operator);
      const assignment = await http.claim(2000, ['op']);
      if (!assignment) throw new Error(`claim ${i} got nothing`);
      turns.push(owner.get(assignment.run.id) ?? -1);
      const body = http.open(assignment);
      for (const [n, part] of scoreOf(assignment.run.id, 12).entries()) body.send(n, part);
      expect(await body.end()).toMatchObject({ status: 200 });
      expect(await http.post(assignment, 'finish', { n: 12 })).toMatchObject({ status: 200 });
    }
    expect(turns.slice(1).every((turn, i) => turn !== turns[i])).toBe(true);
    for (const [run, index] of owner) {
      const own = await storedRun(b.url, tenants[index]?.server ?? '', run);
      expect(own.output).toEqual(foldParts(scoreOf(run, 12)));
      const other = await call(a.url, tenants[1 - index]?.server ?? '', 'GET', `/v1/runs/${run}`);
      expect(other).toMatchObject({ status: 404, body: { code: 'not_found' } });
    }
  });
});

describe('the demo worker', () => {
  const text = (parts: Part[]) => parts.map((part) => (part.type === 'text-delta' ? part.delta : '')).join('');
  const demo = async (env: Record<string, string>) => {
    const { url, drop } = await freshDatabase();
    undo.add(drop, (end) => end());
    const gateway = await startGateway({ env: { DATABASE_URL: url, TUTTI_DEMO_WORKER: 'true', ...env } });
    return undo.add(gateway, (one) => one.stop());
  };

  test('[RUN1] answers with its n-gram model', async () => {
    const gateway = await demo({});
    const viewer = await view(gateway, 'demo');
    const run = await newRun(viewer, 'demo');
    const { type, data } = await viewer.ended(run, 25_000);
    expect(type).toBe('run.completed');
    expect(text(data.message.parts).split(' ').length).toBeGreaterThan(5);
    expect(data).toMatchObject({ run: { usage: { outputTokens: expect.any(Number) } }, meta: { model: 'ngram' } });
    // It was streamed, not sent at once.
    expect(viewer.client.of('run.chunk').length).toBeGreaterThan(5);
    expect(viewer.faults).toEqual([]);
  });

  test('[RUN1][RUN2] streams from an OpenAI-compatible server, and tries again when that is busy', async () => {
    const asked: { path: string | undefined; bearer: string | undefined; body: unknown }[] = [];
    const words = ['Da ', 'capo ', 'al ', 'fine 🎼'];
    const model = createServer(async (request, response) => {
      const body = await readJson(request);
      asked.push({ path: request.url, bearer: request.headers.authorization, body });
      if (asked.length === 1) {
        response.writeHead(503, { 'content-type': 'application/json' });
        response.end(JSON.stringify({ error: { message: 'warming up' } }));
        return;
      }
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      const send = (chunk: unknown) => response.write(`data: ${JSON.stringify(chunk)}\n\n`);
      send({ choices: [{ delta: { role: 'assistant', reasoning_content: 'Hm.' } }] });
      for (const content of words) {
        await sleep(20);
        send({ choices: [{ delta: { content } }] });
      }
      send({ choices: [{ delta: {}, finish_reason: 'stop' }] });
      send({ choices: [], usage: { prompt_tokens: 2, completion_tokens: 4, total_tokens: 6 } });
      response.end('data: [DONE]\n\n');
    });
    await new Promise<void>((resolve) => model.listen(0, '127.0.0.1', resolve));
    undo.add(model, (server) => server.close());
    const address = model.address();
    if (address === null || typeof address === 'string') throw new Error('no port');
    const gateway = await demo({
      OPENAI_BASE_URL: `http://127.0.0.1:${address.port}/v1`,
      OPENAI_API_KEY: 'sk-of-the-tests',
      OPENAI_MODEL: 'maestro',
    });
    const viewer = await view(gateway, 'demo');
    const run = await newRun(viewer, 'demo');
    const { type, data } = await viewer.ended(run);
    expect(type).toBe('run.completed');
    expect(text(data.message.parts)).toBe(words.join(''));
    expect(data.message.parts).toContainEqual({ type: 'reasoning-delta', id: 'reasoning-0', delta: 'Hm.' });
    expect(data).toMatchObject({
      run: { attempt: 2, usage: { inputTokens: 2, outputTokens: 4, totalTokens: 6 } },
      meta: { model: 'maestro' },
    });
    expect(viewer.resets).toMatchObject([{ attempt: 2, reason: 'worker_failed' }]);
    expect(asked[1]).toMatchObject({
      path: '/v1/chat/completions',
      bearer: 'Bearer sk-of-the-tests',
      body: { model: 'maestro', stream: true, messages: [{ role: 'user', content: 'play' }] },
    });
    expect(viewer.faults).toEqual([]);
    expect(gateway.logs()).not.toContain('sk-of-the-tests');
  });

  async function readJson(request: IncomingMessage): Promise<unknown> {
    let body = '';
    for await (const chunk of request) body += chunk;
    return body === '' ? undefined : JSON.parse(body);
  }
});
