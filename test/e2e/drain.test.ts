import { randomBytes } from 'node:crypto';
import connectTo from 'postgres';
import { afterEach, expect, test } from 'vitest';
import { RawClient } from '../realtime/stage.js';
import { connect } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { metric } from '../support/metric.js';
import { startPostgres } from '../support/postgres.js';
import { startProxy } from '../support/proxy.js';
import { startRedis } from '../support/redis.js';
import { DEV_SECRET, DEV_SERVER_KEY, DEV_WORKER_KEY, devToken } from '../support/tokens.js';
import { Reader } from './feed-reader.js';
import { RoomStream } from './feed-stream.js';
import { Publisher } from './log-publisher.js';
import { expectWholeLog } from './log-table.js';
import { scoreOf } from './run-score.js';
import { call, sleep, startPair, Undo, userToken } from './run-stage.js';
import { BareWorker } from './run-workers.js';

const undo = new Undo();
afterEach(() => undo.all());

const GRACE_MS = 10_000;
const client = async (gateway: { url: string }, token: string) =>
  undo.add(await connect({ url: gateway.url, token }), (one) => one.close());
const readyz = async (gateway: GatewayProcess) => (await fetch(`${gateway.url}/readyz`)).status;

test('[DRN1] SIGTERM under load: clients move, nothing acknowledged is lost, the process exits in time', async () => {
  const { a, b, env } = await startPair(undo, { env: { TUTTI_DRAIN_TIMEOUT_MS: String(GRACE_MS) } });
  const urls = [a.url, b.url];
  const room = 'moving';
  const publishers = await Promise.all(
    [0, 1, 2, 3, 4, 5].map(async (n) => new Publisher(`p${n}`, urls, room, await devToken({ user: `p${n}` }))),
  );
  const readers: Reader[] = [];
  for (let n = 0; n < 6; n += 1) {
    const reader = new Reader(urls, room, await devToken({ user: `r${n}` }));
    readers.push(undo.add(await reader.follow(), (one) => one.stop()));
  }
  const watchers = await Promise.all([0, 1, 2, 3, 4, 5].map(async (n) => client(a, await userToken(`w${n}`))));
  const stream = undo.add(await RoomStream.open(a.url, await userToken('sse'), `/v1/rooms/${room}/stream`), (one) =>
    one.close(),
  );
  const claim = call(a.url, DEV_WORKER_KEY, 'POST', '/v1/worker/claims', { models: ['m'], waitMs: 30_000 });
  let over = false;
  const publishing = Promise.all(publishers.map((one) => one.publish(() => over || one.acked.length >= 600, 5)));
  await eventually('a load', () => publishers.every(({ acked }) => acked.length >= 20));

  const started = Date.now();
  expect(await a.term()).toBe(0);
  expect(Date.now() - started).toBeLessThan(GRACE_MS + 3000);
  await eventually('publishers go on at the other gateway', () => publishers.every(({ acked }) => acked.length >= 60));
  over = true;
  await publishing;

  const delays = new Set<number>();
  for (const one of watchers) {
    const closing = await one.waitFor('session.closing');
    expect(closing).toMatchObject({ code: 'draining', reconnect: true });
    expect(closing.afterMs).toBeGreaterThanOrEqual(0);
    delays.add(closing.afterMs ?? -1);
    // The reason upon which socket.io-client comes back by itself.
    expect(one.disconnects).toEqual(['transport close']);
  }
  expect(delays.size).toBeGreaterThan(1);
  expect((await claim).status).toBe(204);
  await eventually('the stream ends', () => stream.ended);
  const mids = await expectWholeLog(env.DATABASE_URL ?? '', room, publishers);
  expect(publishers.flatMap(({ knownAtOnce }) => knownAtOnce)).toEqual([]);
  for (const reader of readers) {
    await reader.reaches(mids.length);
    expect(reader.faults).toEqual([]);
    expect(reader.mids).toEqual(mids);
  }
  expect(a.logs()).toContain('Drained');
  expect(b.running()).toBe(true);
});

test('[DRN1][LOG4] SIGTERM while commands wait for their turn: each is answered before the socket closes, none is lost or doubled', async () => {
  const { a, b } = await startPair(undo, {
    env: { TUTTI_COMMANDS_PER_SECOND: '10000', TUTTI_TENANT_PUBLISHES_PER_SECOND: '100000' },
  });
  const each = 900;
  const mids = Array.from({ length: each }, (_, n) => `m${n}`);
  const chat = (room: string, mid: string) => ({ room, type: 'chat', data: mid, mid });
  const clients = await Promise.all([0, 1, 2, 3].map(async (n) => client(a, await userToken(`u${n}`))));
  let first: () => void = () => undefined;
  const begun = new Promise<void>((resolve) => {
    first = resolve;
  });
  const asked = clients.map((one, n) =>
    Promise.all(
      mids.map(async (mid) => {
        const ack = await one.ask('event.publish', chat(`room${n}`, mid)).catch(() => undefined);
        first();
        return ack;
      }),
    ),
  );
  await begun;
  const exited = a.term();
  const answers = await Promise.all(asked);
  expect(await exited).toBe(0);
  expect(answers.flat().filter((ack) => ack === undefined)).toEqual([]);
  const refused = answers.map((acks) => mids.filter((_, n) => !acks[n]?.ok));
  expect(refused.flat().length).toBeGreaterThan(0);
  for (const ack of answers.flat()) {
    if (!ack?.ok) expect(ack).toMatchObject({ error: { code: 'draining', retryable: true } });
  }
  for (const [n, again] of refused.entries()) {
    const closing = await clients[n]?.waitFor('session.closing');
    expect(closing).toMatchObject({ code: 'draining', reconnect: true });
    const moved = await client(b, await userToken(`u${n}`));
    for (const ack of await Promise.all(again.map((mid) => moved.call('event.publish', chat(`room${n}`, mid))))) {
      expect(ack.duplicate).toBe(false);
    }
    await moved.call('room.join', { room: `room${n}`, from: 'start' });
    await moved.waitFor('event', ({ seq }) => seq === mids.length);
    expect(moved.of('event').map(({ mid }) => mid)).toEqual(mids);
  }
});

test('[OPS1][DRN1] after SIGTERM /readyz is 503 for the time of the notice, and whoever still comes is served', async () => {
  const { a } = await startPair(undo, { env: { TUTTI_DRAIN_NOTICE_MS: '1500' } });
  const { Agent, request } = await import('node:http');
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  undo.add(agent, () => agent.destroy());
  const ask = (path: string) =>
    new Promise<{ status: number | undefined; connection: string | undefined }>((resolve, reject) => {
      const asking = request(a.url + path, { agent }, (response) => {
        const { statusCode: status, headers } = response;
        response.resume().once('end', () => resolve({ status, connection: headers.connection }));
      });
      asking.once('error', reject).end();
    });
  expect(await ask('/readyz')).toEqual({ status: 200, connection: undefined });
  const exited = a.term();
  await eventually('not ready', async () => (await ask('/readyz')).status === 503);
  // The next request is to go where the balancer sends new connections.
  expect(await ask('/healthz')).toEqual({ status: 200, connection: 'close' });
  const late = await client(a, await userToken('late'));
  await late.call('event.publish', { room: 'lobby', type: 'chat', data: 1 });
  expect(late.disconnects).toEqual([]);
  expect(await exited).toBe(0);
  expect(late.of('session.closing')).toMatchObject([{ code: 'draining', reconnect: true }]);
  await expect(connect({ url: a.url, token: await userToken('later') })).rejects.toThrow();
});

test('[DRN1] many clients are asked to move one after another, none for more than a second, and so are streams', async () => {
  const { a } = await startPair(undo);
  const clients = await Promise.all(Array.from({ length: 400 }, async (_, n) => client(a, await userToken(`u${n}`))));
  const streams: RoomStream[] = [];
  for (let n = 0; n < 20; n += 1) {
    const path = `/v1/rooms/r${n}/stream`;
    streams.push(undo.add(await RoomStream.open(a.url, await userToken('sse'), path), (one) => one.close()));
  }
  const started = performance.now();
  expect(await a.term()).toBe(0);
  // 500 in a second; a lower bound, that no slow machine breaks.
  expect(performance.now() - started).toBeGreaterThan(600);
  const pauses = await Promise.all(clients.map(async (one) => (await one.waitFor('session.closing')).afterMs ?? -1));
  expect(Math.min(...pauses)).toBeGreaterThanOrEqual(0);
  expect(Math.max(...pauses)).toBeLessThan(1000);
  // The chance of 400 random numbers to have none in some fifth is 1e-38.
  expect(new Set(pauses.map((ms) => Math.floor(ms / 200))).size).toBe(5);
  await eventually('streams end', () => streams.every(({ ended }) => ended));
  const retries = streams.map(({ raw }) => Number([...raw.matchAll(/^retry: (\d+)$/gm)].at(-1)?.[1]));
  expect(new Set(retries).size).toBeGreaterThan(10);
});

test('[DRN1] connections that neither read nor speak hold nobody up', async () => {
  const { a, b } = await startPair(undo, { env: { TUTTI_DRAIN_TIMEOUT_MS: String(GRACE_MS) } });
  const raw = () => undo.add(new RawClient(a.port), (one) => one.socket.destroy());
  const reading = raw();
  await reading.join('lobby', await userToken('slow'));
  reading.socket.pause();
  const idle = raw();
  idle.upgrade();
  await idle.until('"sid"');
  const silent = raw();
  const half = raw();
  half.socket.write('POST /v1/rooms/lobby/events HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{"type":');
  const stream = raw();
  const authorization = `Bearer ${await userToken('sse')}`;
  stream.request('/v1/rooms/lobby/stream', { authorization });
  await stream.until('retry:');
  stream.socket.pause();
  const body = { type: 'chat', data: 'x'.repeat(60_000) };
  for (let n = 0; n < 20; n += 1) await call(b.url, DEV_SERVER_KEY, 'POST', '/v1/rooms/lobby/events', body);
  const started = Date.now();
  expect(await a.term()).toBe(0);
  expect(Date.now() - started).toBeLessThan(GRACE_MS);
  await silent.closed;
});

test('[DRN1] a gateway that restarts again and again under load loses nothing', async () => {
  const { a, b, env } = await startPair(undo);
  const urls = [a.url, b.url];
  const room = 'rolling';
  const publishers = await Promise.all(
    [0, 1, 2, 3].map(async (n) => new Publisher(`p${n}`, urls, room, await devToken({ user: `p${n}` }))),
  );
  const reader = undo.add(await new Reader(urls, room, await userToken('reader')).follow(), (one) => one.stop());
  let over = false;
  const publishing = Promise.all(publishers.map((one) => one.publish(() => over || one.acked.length >= 900, 5)));
  let [next, other] = [a, b];
  for (let round = 0; round < 4; round += 1) {
    expect(await next.term()).toBe(0);
    const fresh = undo.add(await startGateway({ env, port: next.port }), (one) => one.stop());
    [next, other] = [other, fresh];
  }
  over = true;
  await publishing;
  const mids = await expectWholeLog(env.DATABASE_URL ?? '', room, publishers);
  expect(publishers.flatMap(({ knownAtOnce }) => knownAtOnce)).toEqual([]);
  await reader.reaches(mids.length);
  expect(reader.faults).toEqual([]);
  expect(reader.mids).toEqual(mids);
});

test('[DRN1] SIGTERM while Postgres is away: inside the grace period, with 0 if nothing waits for it, else with 1', async () => {
  const postgres = undo.add(await startPostgres(), (one) => one.destroy());
  const env = { DATABASE_URL: postgres.url, TUTTI_DRAIN_TIMEOUT_MS: '4000' };
  const gateways = [];
  for (let n = 0; n < 3; n += 1) gateways.push(undo.add(await startGateway({ env }), (one) => one.stop()));
  const [idle, publishing, running] = gateways;
  if (!idle || !publishing || !running) throw new Error('no gateways');
  const bystander = await client(idle, await userToken('ann'));
  await bystander.call('room.join', { room: 'lobby' });
  const ann = await client(publishing, await userToken('ann'));
  await ann.call('room.join', { room: 'lobby' });
  const worker = undo.add(await BareWorker.connect(running.url), (one) => one.close());
  await ann.call('run.create', { room: 'lobby', model: 'score', input: 1 });
  const assignment = await worker.assignment();
  await postgres.kill9();
  ann.ask('event.publish', { room: 'lobby', type: 'chat', data: 1 }).catch(() => undefined);
  expect(await worker.push(assignment, 0, scoreOf('w', 20))).toMatchObject({ committed: 0 });
  await sleep(300);
  const started = Date.now();
  expect(await Promise.all(gateways.map((one) => one.term()))).toEqual([0, 1, 1]);
  expect(Date.now() - started).toBeLessThan(4000 + 3000);
  expect(publishing.logs()).toContain('Left without committing');
});

test('[DRN1] a second SIGTERM ends a gateway that still drains, at once and with 1', async () => {
  const { a } = await startPair(undo, { env: { TUTTI_DRAIN_NOTICE_MS: '7000' } });
  const started = Date.now();
  const exited = a.term();
  await eventually('it drains', () => a.logs().includes('Draining'));
  a.signal('SIGTERM');
  expect(await exited).toBe(1);
  expect(Date.now() - started).toBeLessThan(6000);
});

test('[OPS1][ERR1] while Postgres is away: 503, refusals that may be retried, and all is well when it is back', async () => {
  const postgres = undo.add(await startPostgres(), (one) => one.destroy());
  const env = { DATABASE_URL: postgres.url, TUTTI_APPEND_TIMEOUT_MS: '1500' };
  const gateway = undo.add(await startGateway({ env }), (one) => one.stop());
  const ann = await client(gateway, await userToken('ann'));
  await ann.call('room.join', { room: 'lobby' });
  expect(await readyz(gateway)).toBe(200);
  await postgres.kill9();
  await eventually('not ready', async () => (await readyz(gateway)) === 503);
  expect((await fetch(`${gateway.url}/healthz`)).status).toBe(200);
  const chat = { room: 'lobby', type: 'chat', data: 'x', mid: 'm1' };
  const refused = [
    await ann.ask('event.publish', chat),
    await ann.ask('event.history', { room: 'lobby' }),
    await ann.ask('run.create', { room: 'lobby', model: 'm', input: 1 }),
    await ann.ask('room.join', { room: 'not-open-yet' }),
  ];
  for (const ack of refused) {
    expect(ack).toMatchObject({ ok: false, error: { code: 'log_unavailable', retryable: true } });
    expect(JSON.stringify(ack)).not.toMatch(/ECONN|postgres|127\.0\.0\.1|\d{5}/i);
  }
  const http = await call(gateway.url, DEV_SERVER_KEY, 'GET', '/v1/rooms');
  expect(http).toMatchObject({ status: 503, body: { code: 'log_unavailable', retryable: true } });
  await postgres.start();
  await eventually('ready again', async () => (await readyz(gateway)) === 200);
  const stored = await ann.call('event.publish', chat);
  expect(stored.position.seq).toBe(1);
  await ann.waitFor('event', ({ seq }) => seq === 1);
  await ann.call('room.join', { room: 'not-open-yet' });
  expect(ann.disconnects).toEqual([]);
  expect(gateway.running()).toBe(true);
});

test('[OPS1] while Postgres is read-only: /readyz stays 200 and says that nothing is committed, readers are served', async () => {
  const postgres = undo.add(await startPostgres({ settings: { fsync: 'off' } }), (one) => one.destroy());
  const sql = undo.add(connectTo(postgres.url, { max: 1 }), (one) => one.end());
  const gateway = undo.add(
    await startGateway({ env: { DATABASE_URL: postgres.url, TUTTI_APPEND_TIMEOUT_MS: '1000' } }),
    (one) => one.stop(),
  );
  const readiness = async () => {
    const response = await fetch(`${gateway.url}/readyz`);
    const body = (await response.json()) as { ready: boolean; reasons: string[]; degraded: string[] };
    return { status: response.status, body };
  };
  const chat = (mid: string) => ({ room: 'lobby', type: 'chat', data: 1, mid });
  const ann = await client(gateway, await userToken('ann'));
  await ann.call('event.publish', chat('m1'));
  const well = { status: 200, body: { ready: true, reasons: [], degraded: [] } };
  expect(await readiness()).toEqual(well);

  await sql.unsafe('alter system set default_transaction_read_only = on');
  await sql`select pg_reload_conf()`;
  const from = Date.now();
  await eventually('nothing is committed', async () => !(await ann.ask('event.publish', chat('m2'))).ok);
  const { status, body } = await readiness();
  expect([status, body.ready, body.reasons, body.degraded.length]).toEqual([200, true, [], 1]);
  const since = Date.parse(/since (\S+)\.$/.exec(body.degraded[0] ?? '')?.[1] ?? '');
  expect(since).toBeGreaterThanOrEqual(from - 1000);
  expect(since).toBeLessThanOrEqual(Date.now());
  expect(await metric(gateway.url, 'append_failing_seconds')).toBeGreaterThan(0.3);
  const late = await client(gateway, await userToken('late'));
  await late.call('room.join', { room: 'lobby', from: 'start' });
  expect(await late.waitFor('event')).toMatchObject({ mid: 'm1' });

  await sql.unsafe('set default_transaction_read_only = off');
  await sql.unsafe('alter system reset default_transaction_read_only');
  await sql`select pg_reload_conf()`;
  await eventually('commits again', async () => (await ann.ask('event.publish', chat('m2'))).ok);
  expect(await readiness()).toEqual(well);
  expect(await metric(gateway.url, 'append_failing_seconds')).toBe(0);
});

test('[OPS1] no log line holds a token, a key or the body of a message, at the finest level and in every fault', async () => {
  const postgres = undo.add(await startPostgres(), (one) => one.destroy());
  const redis = undo.add(await startRedis(), (one) => one.stop());
  const proxy = undo.add(await startProxy(redis.port), (one) => one.close());
  const { a, b } = await startPair(undo, {
    databaseUrl: postgres.url,
    redisUrl: `redis://127.0.0.1:${proxy.port}`,
    env: { LOG_LEVEL: 'trace', TUTTI_APPEND_TIMEOUT_MS: '800' },
  });
  const canary = `canary-${randomBytes(8).toString('hex')}`;
  const tokens: string[] = [];
  const tokenOf = async (user: string) => {
    const token = await devToken({ user });
    tokens.push(token);
    return token;
  };
  const all = async (gateway: GatewayProcess) => {
    const ann = await client(gateway, await tokenOf('ann'));
    const bearer = await tokenOf('bob');
    const chat = { room: 'lobby', type: 'chat', data: { canary } };
    const body = { type: 'chat', data: canary };
    await Promise.all([
      ann.ask('room.join', { room: 'lobby', from: 'start' }),
      ann.ask('event.publish', chat),
      ann.ask('event.publish', { ...chat, [canary]: canary }),
      ann.ask(canary, chat),
      ann.ask('event.publish', { ...chat, room: `${canary} `, type: canary }),
      ann.ask('broadcast.send', chat),
      ann.ask('run.create', { room: 'lobby', model: 'm', input: canary }),
      ann.ask('session.refresh', { token: await tokenOf('ann') }),
      ann.ask('session.refresh', { token: `${await tokenOf('ann')}x` }),
      call(gateway.url, bearer, 'POST', '/v1/rooms/lobby/events', body).catch(() => undefined),
      call(gateway.url, bearer, 'POST', `/v1/rooms/lobby/events?token=${bearer}`, body).catch(() => undefined),
      call(gateway.url, DEV_SERVER_KEY, 'POST', '/v1/rooms/lobby/events', body).catch(() => undefined),
      call(gateway.url, DEV_WORKER_KEY, 'POST', '/v1/worker/claims', { models: ['m'], waitMs: 50 }).catch(
        () => undefined,
      ),
      call(gateway.url, DEV_SERVER_KEY, 'POST', '/v1/tokens', { user: canary, cap: {}, ttlSeconds: 60 }).then(
        ({ body: minted }) => tokens.push((minted as { token?: string }).token ?? DEV_SERVER_KEY),
        () => undefined,
      ),
    ]);
    await connect({ url: gateway.url, token: `${await tokenOf('eve')}x` }).catch(() => undefined);
    await connect({ url: `${gateway.url}/?token=${bearer}`, token: '' }).catch(() => undefined);
    ann.close();
  };
  await all(a);
  proxy.cut();
  await all(b);
  proxy.heal();
  const during = await client(a, await tokenOf('ann'));
  await during.call('room.join', { room: 'lobby' });
  await postgres.kill9();
  await during.ask('event.publish', { room: 'lobby', type: 'chat', data: canary });
  await during.ask('run.create', { room: 'lobby', model: 'm', input: canary });
  await connect({ url: a.url, token: await tokenOf('new') }).catch(() => undefined);
  await postgres.start();
  await eventually('ready again', async () => (await readyz(a)) === 200 && (await readyz(b)) === 200);
  await all(a);
  const codes = await Promise.all([a.term(), b.term()]);
  expect(codes).toEqual([0, 0]);

  for (const logs of [a.logs(), b.logs()]) {
    expect(logs.length).toBeGreaterThan(1000);
    const secrets = [
      DEV_SECRET,
      DEV_SERVER_KEY.slice(-20),
      DEV_WORKER_KEY.slice(-20),
      // Signatures, and bodies that would name the user and the rights.
      ...tokens.flatMap((token) => token.split('.').slice(1)),
      canary,
    ];
    const leaks = logs.split('\n').filter((line) => secrets.some((secret) => line.includes(secret)));
    expect(leaks.map((line) => line.slice(0, 400))).toEqual([]);
    for (const line of logs.split('\n').filter((one) => one.startsWith('{'))) {
      expect(JSON.parse(line)).toMatchObject({ level: expect.any(Number), node: expect.any(String) });
    }
  }
});

test('[OPS1] metrics count what a person on call asks for', async () => {
  const { a, more } = await startPair(undo);
  const ann = await client(a, await userToken('ann'));
  await ann.call('room.join', { room: 'lobby' });
  const chat = { room: 'lobby', type: 'chat', data: 1, mid: 'm1' };
  await ann.call('event.publish', chat);
  await ann.call('event.publish', chat);
  await ann.ask('event.publish', { ...chat, type: 'run.no' });
  await ann.waitFor('event');
  const response = await fetch(`${a.url}/metrics`);
  expect(response.headers.get('content-type')).toMatch(/^text\/plain/);
  const metrics = new Map(
    (await response.text()).split('\n').flatMap((line): [string, number][] => {
      const at = line.lastIndexOf(' ');
      return line === '' || line.startsWith('#') ? [] : [[line.slice(0, at), Number(line.slice(at + 1))]];
    }),
  );
  const expected: Record<string, number> = {
    'tutti_connections_total{namespace="/"}': 1,
    tutti_sessions: 1,
    tutti_rooms_open: 1,
    tutti_room_joins: 1,
    'tutti_commands_total{command="event.publish",code="ok"}': 2,
    'tutti_commands_total{command="event.publish",code="bad_request"}': 1,
    'tutti_deliveries_total{push="event"}': 1,
    tutti_publish_duplicates_total: 1,
    tutti_slow_closes_total: 0,
    tutti_commit_seconds_count: 1,
    tutti_join_seconds_count: 1,
    tutti_database_up: 1,
    tutti_bus_connected: 1,
    tutti_draining: 0,
  };
  const seen = Object.fromEntries(Object.keys(expected).map((name) => [name, metrics.get(name)]));
  seen.tutti_commit_seconds_count = Math.min(1, seen.tutti_commit_seconds_count ?? 0); // duplicates commit too
  expect(seen).toEqual(expected);
  await ann.call('run.create', { room: 'lobby', model: 'nobody', input: 1 });
  const later = await more();
  await eventually('a run waits', async () =>
    (await (await fetch(`${later.url}/metrics`)).text()).includes('\ntutti_runs_queued 1\n'),
  );
  const text = await (await fetch(`${a.url}/metrics`)).text();
  for (const name of ['repairs', 'resyncs', 'bus_lag', 'runs', 'run_first_token', 'run_queue_wait']) {
    expect(text).toContain(`# TYPE tutti_${name}`);
  }
});
