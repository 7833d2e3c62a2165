import { SignJWT } from 'jose';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { RawClient } from '../realtime/stage.js';
import { type Ack, connect, type TestClient } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import type { GatewayProcess } from '../support/gateway.js';
import { DEV_SECRET, DEV_SERVER_KEY, DEV_WORKER_KEY, devToken } from '../support/tokens.js';
import { RoomStream } from './feed-stream.js';
import { inDatabase } from './log-table.js';
import { startPair, Undo, userToken } from './run-stage.js';

/*
 * Hostile input against whole gateways. Every test ends with the same look: the tables hold what they held before, and both
 * processes serve.
 */

const undo = new Undo();
const shared = new Undo();
let a: GatewayProcess;
let b: GatewayProcess;
let databaseUrl: string;
let before: unknown;

const tables = () =>
  inDatabase(databaseUrl, async (sql) => ({
    rooms: await sql`select tenant_id, name, epoch, head, floor from tutti.rooms order by id`,
    events: await sql`select * from tutti.events order by room_id, seq`,
    runs: await sql`select * from tutti.runs order by id`,
    segments: await sql`select * from tutti.run_segments`,
    keys: await sql`select * from tutti.api_keys order by id`,
    issuers: await sql`select * from tutti.issuers order by id`,
  }));

beforeAll(async () => {
  const limits = { TUTTI_MAX_SESSIONS_PER_USER: '8', TUTTI_MAX_ROOMS_PER_SESSION: '3' };
  const pair = await startPair(shared, { env: limits });
  ({ a, b } = pair);
  databaseUrl = pair.env.DATABASE_URL ?? '';
  const ann = await connect({ url: a.url, token: await userToken('ann') });
  await ann.call('event.publish', { room: 'lobby', type: 'chat', data: 'kept', mid: 'kept' });
  await ann.call('run.create', { room: 'lobby', model: 'nobody-serves-this', input: 'kept', mid: 'kept' });
  ann.close();
  before = await tables();
});
afterAll(() => shared.all());
afterEach(async () => {
  await undo.all();
  for (const gateway of [a, b]) {
    expect(gateway.running()).toBe(true);
    expect((await fetch(`${gateway.url}/readyz`)).status).toBe(200);
  }
  expect(await tables()).toEqual(before);
});

const client = async (token?: string): Promise<TestClient> =>
  undo.add(await connect({ url: a.url, token: token ?? (await userToken('ann')) }), (one) => one.close());
const nested = (depth: number): unknown => JSON.parse('['.repeat(depth) + ']'.repeat(depth));
const codeOf = (ack: Ack): string => (ack.ok ? 'ok' : ack.error.code);
const tooLarge = 'x'.repeat(64 * 1024 - 1); // with its quotes one byte more than 64 KiB
const withProto = JSON.parse('{"room":"lobby","type":"chat","data":1,"__proto__":{"admin":true}}') as object;

const chat = { room: 'lobby', type: 'chat', data: 1 };
const rooms: unknown[] = [
  '',
  ' ',
  '.',
  '..',
  '-a',
  'a b',
  'a/b',
  '../lobby',
  'a\u0000b',
  'é',
  'a'.repeat(129),
  '*',
  'lobby*',
  '%2e',
  7,
  null,
  {},
  ['lobby'],
  'a\n',
];

test('[ERR1] hostile commands are refused with the right code and change nothing', async () => {
  const ann = await client();
  const corpus: [string, unknown, string][] = [
    ['no.such.command', {}, 'bad_request'],
    ['__proto__', {}, 'bad_request'],
    ['constructor', {}, 'bad_request'],
    ['hasOwnProperty', chat, 'bad_request'],
    ...[undefined, null, 1, 'text', [], [chat], true, Buffer.from('{}')].map((payload): [string, unknown, string] => [
      'event.publish',
      payload,
      'bad_request',
    ]),
    ...rooms.flatMap((room): [string, unknown, string][] => [
      ['event.publish', { ...chat, room }, 'bad_request'],
      ['room.join', { room }, 'bad_request'],
      ['run.create', { room, model: 'm', input: 1 }, 'bad_request'],
      ['event.history', { room }, 'bad_request'],
    ]),
    ['event.publish', { room: 'lobby', type: 'chat' }, 'bad_request'],
    ['event.publish', { ...chat, seq: 9 }, 'bad_request'],
    ['event.publish', { ...chat, tenant: 'other' }, 'bad_request'],
    ['event.publish', withProto, 'bad_request'],
    ['event.publish', { ...chat, type: 'run.completed' }, 'bad_request'],
    ['event.publish', { ...chat, type: 'room.erased' }, 'bad_request'],
    ['event.publish', { ...chat, type: 'Chat' }, 'bad_request'],
    ['event.publish', { ...chat, type: '' }, 'bad_request'],
    ['event.publish', { ...chat, mid: 'run:1:end' }, 'bad_request'],
    ['event.publish', { ...chat, mid: 'a'.repeat(65) }, 'bad_request'],
    ['event.publish', { ...chat, data: nested(33) }, 'bad_request'],
    ['event.publish', { ...chat, data: tooLarge }, 'payload_too_large'],
    ['event.publish', { ...chat, data: '€'.repeat(22_000) }, 'payload_too_large'],
    ['event.publish', { ...chat, data: Buffer.from('binary') }, 'bad_request'],
    ['event.publish', { ...chat, data: { deep: [Buffer.from('binary')] } }, 'bad_request'],
    ['event.publish', { ...chat, data: 'nul \u0000 in text', mid: 'kept ' }, 'bad_request'],
    ['broadcast.send', { ...chat, data: tooLarge }, 'payload_too_large'],
    ['broadcast.send', { ...chat, mid: 'no' }, 'bad_request'],
    ['run.create', { room: 'lobby', model: '../etc', input: 1 }, 'bad_request'],
    ['run.create', { room: 'lobby', model: 'm', input: nested(33) }, 'bad_request'],
    ['run.create', { room: 'lobby', model: 'm', input: tooLarge }, 'payload_too_large'],
    ['run.cancel', { run: '../x' }, 'bad_request'],
    ['run.cancel', { run: 'unknown' }, 'not_found'],
    ['room.join', { room: 'lobby', from: 'middle' }, 'bad_request'],
    ['room.join', { room: 'lobby', from: { seq: 1 } }, 'bad_request'],
    ['room.join', { room: 'lobby', from: { epoch: 'x', seq: -1 } }, 'bad_request'],
    ['room.join', { room: 'lobby', from: { epoch: 'x', seq: 1.5 } }, 'bad_request'],
    ['room.join', { room: 'lobby', from: { epoch: 'x'.repeat(65), seq: 1 } }, 'bad_request'],
    ['room.leave', { room: 'never-joined' }, 'not_joined'],
    ['event.history', { room: 'lobby', limit: 501 }, 'bad_request'],
    ['event.history', { room: 'lobby', after: Number.MAX_SAFE_INTEGER + 2 }, 'bad_request'],
    ['session.refresh', { token: 'nonsense' }, 'unauthenticated'],
    ['session.refresh', {}, 'bad_request'],
  ];
  const wrong: string[] = [];
  for (const [command, payload, code] of corpus) {
    const ack = await ann.ask(command, payload);
    if (codeOf(ack) !== code)
      wrong.push(`${command} ${JSON.stringify(payload)?.slice(0, 90)}: ${codeOf(ack)}, not ${code}`);
    if (!ack.ok) {
      expect(Object.keys(ack.error).sort()).toEqual(['code', 'message', 'retryable']);
      expect(JSON.stringify(ack).length).toBeLessThan(500);
    }
  }
  expect(wrong).toEqual([]);
  expect(ann.disconnects).toEqual([]);
});

/** What is odd and yet JSON: it comes back as it went in. */
const ODD: unknown[] = [
  'nul \u0000 inside',
  { '\u0000': '\u0000' },
  'half a pair \ud800',
  '\u2028\u2029</script>',
  JSON.parse('{"__proto__":{"admin":true},"constructor":1,"toString":null}'),
  nested(31),
  [1e308, -0.1, 1e-7, Number.MAX_SAFE_INTEGER],
  '',
  null,
];

test('[ERR1] odd JSON is data: events and runs give it back as it was', async () => {
  const ann = await client();
  const reader = await client();
  await reader.call('room.join', { room: 'odd', from: 'start' });
  for (const data of ODD) await ann.call('event.publish', { room: 'odd', type: 'chat', data });
  await reader.waitFor('event', ({ seq }) => seq === ODD.length);
  const { events } = (await ann.call('event.history', { room: 'odd', after: 0 })) as { events: { data: unknown }[] };
  for (const [n, data] of ODD.entries()) {
    expect(JSON.stringify(events[n]?.data)).toBe(JSON.stringify(data));
    expect(JSON.stringify(reader.of('event')[n]?.data)).toBe(JSON.stringify(data));
  }
  const { run } = await ann.call('run.create', { room: 'odd', model: 'odd', input: ODD });
  const worker = { authorization: `Bearer ${DEV_WORKER_KEY}` };
  const post = (path: string, body: string, headers: Record<string, string>) =>
    fetch(`${b.url}/v1/worker${path}`, { method: 'POST', headers: { ...worker, ...headers }, body });
  const json = { 'content-type': 'application/json' };
  const claim = await post('/claims', JSON.stringify({ models: ['odd'], waitMs: 3000 }), json);
  const { input, fence } = (await claim.json()) as { input: unknown; fence: number };
  expect(JSON.stringify(input)).toBe(JSON.stringify(ODD));
  const fenced = { 'tutti-fence': String(fence) };
  const parts = [
    { type: 'text-start', id: 't' },
    ...ODD.filter((one) => typeof one === 'string').map((delta) => ({ type: 'text-delta', id: 't', delta })),
  ];
  const lines = parts.map((part, n) => `${JSON.stringify({ n, part })}\n`).join('');
  const pushed = await post(`/runs/${run.id}/chunks`, lines, { ...fenced, 'content-type': 'application/x-ndjson' });
  expect(pushed.status).toBe(200);
  expect((await post(`/runs/${run.id}/finish`, '{}', { ...fenced, ...json })).status).toBe(200);
  const end = await reader.waitFor('event', ({ type }) => type === 'run.completed');
  const text = ODD.filter((one) => typeof one === 'string').join('');
  expect(JSON.stringify(end.data)).toContain(JSON.stringify(text));
  before = await tables();
});

test('[LIM1] names that clients make up do not grow the metrics without end', async () => {
  const ann = await client();
  const names = Array.from({ length: 150 }, (_, n) => `made-up-${n}`);
  const acks = await Promise.all(
    names.map((model, n) => ann.ask('run.create', { room: `made-up-${n % 2}`, model, input: 1 })),
  );
  expect(acks.filter((ack) => !ack.ok)).toEqual([]);
  const metrics = await (await fetch(`${a.url}/metrics`)).text();
  expect(new Set([...metrics.matchAll(/model="(made-up-\d+)"/g)].map(([, model]) => model)).size).toBeLessThanOrEqual(
    100,
  );
  expect(metrics).toMatch(/tutti_runs_total\{model="other",outcome="created"\} \d+/);
  before = await tables();
});

test('[AUTH2] an unknown room and a forbidden one answer alike, for every command', async () => {
  const eve = await client(await devToken({ user: 'eve', cap: { 'eve.*': ['join', 'publish'] } }));
  const commands: [string, object][] = [
    ['room.join', {}],
    ['event.publish', { type: 'chat', data: 1 }],
    ['event.history', {}],
    ['broadcast.send', { type: 'chat', data: 1 }],
    ['run.create', { model: 'm', input: 1 }],
  ];
  for (const [command, payload] of commands) {
    const [known, unknown] = [
      await eve.ask(command, { ...payload, room: 'lobby' }),
      await eve.ask(command, { ...payload, room: 'never-was' }),
    ];
    expect(codeOf(known), command).toBe('forbidden');
    expect(known).toEqual(unknown);
  }
});

describe('[ERR1] bytes below Socket.IO', () => {
  const engine = async (): Promise<RawClient> => {
    const raw = undo.add(new RawClient(a.port), (one) => one.socket.destroy());
    raw.upgrade();
    await raw.until('"sid"');
    return raw;
  };

  test.each<[string, string | Buffer, number]>([
    ['a binary frame', Buffer.from([0x00, 0xff, 0xfe]), 0x2],
    ['invalid UTF-8', Buffer.from([0x34, 0x32, 0xc3, 0x28]), 0x1],
    ['an unknown packet', '9', 0x1],
    ['an event before the CONNECT', '420["room.join",{"room":"lobby"}]', 0x1],
    ['attachments that never come', '451-["event.publish",{"_placeholder":true,"num":0}]', 0x1],
    ['a million attachments', '451000000-["x"]', 0x1],
    ['no JSON', '40{"token":', 0x1],
    ['an unknown namespace', '40/../etc,{}', 0x1],
    ['a name that is an object', '420[{"toString":1},{}]', 0x1],
    ['a frame past the limit', 'x'.repeat(300 * 1024), 0x1],
  ])('%s before authentication ends that socket at most', async (_, payload, opcode) => {
    const raw = await engine();
    raw.frame(payload, opcode);
    await new Promise((wait) => setTimeout(wait, 60));
    expect(raw.received).not.toContain('session.ready');
  });

  test.each<[string, string | Buffer, number]>([
    ['a binary frame', Buffer.from([0x00, 0xff, 0xfe]), 0x2],
    ['a reserved event name', '421["disconnect",{}]', 0x1],
    ['a second CONNECT', '40{"token":"x"}', 0x1],
    ['an ack nobody asked for', '43999[{}]', 0x1],
    ['an ack id too large', '4299999999999999999999["room.join",{"room":"lobby"}]', 0x1],
    [
      'a frame past the limit',
      `42["event.publish",{"room":"lobby","type":"a","data":"${'x'.repeat(300 * 1024)}"}]`,
      0x1,
    ],
    [
      'invalid UTF-8',
      Buffer.concat([
        Buffer.from('421["event.publish",{"room":"lobby","type":"a","data":"'),
        Buffer.from([0xc3, 0x28]),
        Buffer.from('"}]'),
      ]),
      0x1,
    ],
    ['a control frame that is too long', 'x'.repeat(126), 0x9],
    ['a reserved opcode', 'x', 0x3],
  ])('%s in a session ends that session at most', async (_, payload, opcode) => {
    const other = await client();
    const raw = undo.add(new RawClient(a.port), (one) => one.socket.destroy());
    await raw.join('lobby', await userToken('mallory'));
    raw.frame(payload, opcode);
    await new Promise((wait) => setTimeout(wait, 60));
    expect(codeOf(await other.ask('room.join', { room: 'lobby' }))).toBe('ok');
    expect(raw.received).not.toMatch(/ at .*\.(js|ts):/);
  });
});

test('[ERR1] hostile requests over HTTP are refused as problem details with the right code', async () => {
  const ann = await userToken('ann');
  const events = '/v1/rooms/lobby/events';
  const invalid = Buffer.concat([Buffer.from('{"type":"chat","data":"'), Buffer.from([0xc3, 0x28]), Buffer.from('"}')]);
  const corpus: [string, string, string | Buffer | undefined, number, string][] = [
    ['POST', events, '', 400, 'bad_request'],
    ['POST', events, '[]', 400, 'bad_request'],
    ['POST', events, '{"type":"chat","data":1,"__proto__":{"mid":"x"}}', 400, 'bad_request'],
    ['POST', events, '{"type":"chat"}', 400, 'bad_request'],
    ['POST', events, '{"type":"run.created","data":1}', 400, 'bad_request'],
    ['POST', events, invalid, 400, 'bad_request'],
    ['POST', events, JSON.stringify({ type: 'chat', data: nested(33) }), 400, 'bad_request'],
    ['POST', events, JSON.stringify({ type: 'chat', data: tooLarge }), 413, 'payload_too_large'],
    ['POST', events, ' '.repeat(300 * 1024), 413, 'payload_too_large'],
    ['POST', '/v1/rooms/a%20b/events', '{"type":"chat","data":1}', 400, 'bad_request'],
    ['POST', '/v1/rooms/a%00b/events', '{"type":"chat","data":1}', 400, 'bad_request'],
    ['POST', '/v1/rooms/%ff/events', '{"type":"chat","data":1}', 400, 'bad_request'],
    ['POST', '/v1/rooms/lobby/runs', '{"model":"m"}', 400, 'bad_request'],
    ['GET', `${events}?limit=501`, undefined, 400, 'bad_request'],
    ['GET', `${events}?after=-1`, undefined, 400, 'bad_request'],
    ['GET', '/v1/rooms/lobby/stream?after=nonsense', undefined, 400, 'bad_request'],
    ['GET', '/v1/rooms/never-was', undefined, 404, 'not_found'],
    ['GET', '/v1/runs/unknown', undefined, 404, 'not_found'],
    ['GET', '/v1/nothing', undefined, 404, 'not_found'],
    ['DELETE', '/v1/rooms/lobby', undefined, 403, 'forbidden'],
    ['POST', '/v1/tokens', '{"user":"eve","cap":{"*":["join"]},"ttlSeconds":60}', 403, 'forbidden'],
    ['POST', '/v1/worker/claims', '{"models":["nobody-serves-this"],"waitMs":0}', 403, 'forbidden'],
    ['POST', '/demo/token', '{"user":"eve"}', 403, 'forbidden'],
  ];
  const wrong: string[] = [];
  for (const [method, path, body, status, code] of corpus) {
    const response = await fetch(a.url + path, {
      method,
      headers: { authorization: `Bearer ${ann}`, 'content-type': 'application/json' },
      ...(body === undefined ? {} : { body }),
    });
    const problem = (await response.json()) as Record<string, unknown>;
    if (response.status !== status || problem.code !== code) {
      wrong.push(`${method} ${path} ${String(body).slice(0, 60)}: ${response.status} ${JSON.stringify(problem)}`);
    }
    expect(response.headers.get('content-type')).toBe('application/problem+json');
  }
  expect(wrong).toEqual([]);
});

test('[AUTH1] tokens of every wrong kind are refused at sockets and over HTTP alike', async () => {
  const now = Math.floor(Date.now() / 1000);
  const unsigned = (header: object, claims: object) =>
    [header, claims].map((part) => Buffer.from(JSON.stringify(part)).toString('base64url')).join('.');
  const claims = { iss: 'tutti-dev', aud: 'tutti', sub: 'ann', iat: now, exp: now + 600, cap: { '*': ['join'] } };
  const good = await devToken({ user: 'ann' });
  const [head = '', body = '', signature = ''] = good.split('.');
  const signedAs = (alg: string) =>
    new SignJWT(claims).setProtectedHeader({ alg }).sign(new TextEncoder().encode(DEV_SECRET.repeat(2)));
  const wrong: [string, string, string][] = [
    ['empty', '', 'unauthenticated'],
    ['no token', 'nonsense', 'unauthenticated'],
    ['alg none', `${unsigned({ alg: 'none' }, claims)}.`, 'unauthenticated'],
    ['alg none with a signature', `${unsigned({ alg: 'None', typ: 'JWT' }, claims)}.${signature}`, 'unauthenticated'],
    [
      'a signature of another body',
      `${head}.${Buffer.from(JSON.stringify(claims)).toString('base64url')}.${signature}`,
      'unauthenticated',
    ],
    ['no signature', `${head}.${body}.`, 'unauthenticated'],
    ['another secret', await devToken({ secret: 'another-secret-of-the-tests-32-bytes' }), 'unauthenticated'],
    ['another algorithm', await signedAs('HS512'), 'unauthenticated'],
    ['another audience', await devToken({ claims: { aud: 'other' } }), 'unauthenticated'],
    ['another issuer', await devToken({ claims: { iss: 'https://evil.example' } }), 'unauthenticated'],
    ['no issuer', await devToken({ claims: { iss: undefined } }), 'unauthenticated'],
    ['no user', await devToken({ claims: { sub: undefined } }), 'unauthenticated'],
    ['no end', await devToken({ claims: { exp: undefined } }), 'unauthenticated'],
    ['another tenant', await devToken({ claims: { tenant: 'other' } }), 'unauthenticated'],
    ['a life too long', await devToken({ ttlSeconds: 90_000 }), 'unauthenticated'],
    ['ended', await devToken({ ttlSeconds: -60 }), 'token_expired'],
    ['not yet', await devToken({ claims: { nbf: now + 900 } }), 'unauthenticated'],
    ['a key with a wrong secret', `${DEV_SERVER_KEY.slice(0, -1)}x`, 'unauthenticated'],
    ['a token far too long', `${good}${'x'.repeat(20_000)}`, 'unauthenticated'],
  ];
  for (const [what, token, code] of wrong) {
    const refused = await connect({ url: b.url, token }).then(
      () => 'let in',
      (error: { error?: { code: string } }) => error.error?.code ?? String(error),
    );
    expect(refused, what).toBe(code);
    if (token.length > 16_384) continue; // headers end before
    const response = await fetch(`${b.url}/v1/rooms`, { headers: { authorization: `Bearer ${token}` } });
    expect([what, response.status, ((await response.json()) as { code: string }).code]).toEqual([what, 401, code]);
  }
  for (const auth of [{}, { token: null }, { token: { toString: 'x' } }, { token: [good] }, { key: DEV_SERVER_KEY }]) {
    await expect(connect({ url: b.url, auth })).rejects.toMatchObject({ error: { code: 'unauthenticated' } });
  }
  const workers = { url: b.url, namespace: '/worker' };
  await expect(connect({ ...workers, auth: { token: good } })).rejects.toMatchObject({
    error: { code: 'unauthenticated' },
  });
  await expect(connect({ ...workers, auth: { key: DEV_SERVER_KEY } })).rejects.toMatchObject({
    error: { code: 'forbidden' },
  });
  const worker = await fetch(`${b.url}/v1/rooms`, { headers: { authorization: `Bearer ${DEV_WORKER_KEY}` } });
  expect(worker.status).toBe(403);
});

test('[LIM1] a flood of one session is refused with retryAfterMs, and the others do not notice', async () => {
  const [flooder, other] = [await client(await userToken('mallory')), await client(await userToken('bob'))];
  await other.call('room.join', { room: 'lobby' });
  const acks = await Promise.all(
    Array.from({ length: 600 }, () => flooder.ask('event.history', { room: 'lobby', limit: 1 })),
  );
  const refused = acks.flatMap((ack) => (ack.ok ? [] : [ack.error]));
  expect(refused.length).toBeGreaterThan(200);
  expect(refused.length).toBeLessThan(600);
  for (const error of refused) {
    expect(error).toMatchObject({ code: 'rate_limited', retryable: true });
    expect(error.retryAfterMs).toBeGreaterThan(0);
  }
  for (let n = 0; n < 50; n += 1)
    expect(codeOf(await other.ask('event.history', { room: 'lobby', limit: 1 }))).toBe('ok');
  const wait = Math.max(...refused.map(({ retryAfterMs = 0 }) => retryAfterMs));
  await new Promise((resolve) => setTimeout(resolve, wait + 50));
  expect(codeOf(await flooder.ask('event.history', { room: 'lobby', limit: 1 }))).toBe('ok');
  const metrics = await (await fetch(`${a.url}/metrics`)).text();
  const counted = (scope: string) =>
    Number(new RegExp(`^tutti_rate_limited_total\\{scope="${scope}"\\} (\\S+)$`, 'm').exec(metrics)?.[1]);
  expect(counted('session')).toBeGreaterThan(0);
  expect(counted('session') + counted('standing')).toBeGreaterThanOrEqual(refused.length);
});

test('[LIM1] a flood over HTTP is refused with Retry-After', async () => {
  const authorization = `Bearer ${await userToken('flood')}`;
  const answers = await Promise.all(
    Array.from({ length: 400 }, async () => {
      const response = await fetch(`${b.url}/v1/rooms/lobby/events?limit=1`, { headers: { authorization } });
      return { status: response.status, after: response.headers.get('retry-after'), body: await response.json() };
    }),
  );
  const refused = answers.filter(({ status }) => status === 429);
  expect(refused.length).toBeGreaterThan(50);
  expect(answers.filter(({ status }) => status === 200).length).toBe(400 - refused.length);
  for (const { after, body } of refused) {
    expect(Number(after)).toBeGreaterThan(0);
    expect(body).toMatchObject({ code: 'rate_limited', retryable: true, retryAfterMs: expect.any(Number) });
  }
});

test('[LIM1] sessions of a user and rooms of a session are counted, and given back however they end', async () => {
  const token = await userToken('many');
  const sessions = await Promise.all(Array.from({ length: 6 }, () => client(token)));
  const raw = undo.add(new RawClient(a.port), (one) => one.socket.destroy());
  await raw.join('lobby', token);
  const stream = undo.add(await RoomStream.open(a.url, token, '/v1/rooms/lobby/stream'), (one) => one.close());
  await expect(client(token)).rejects.toMatchObject({ error: { code: 'quota_exceeded', retryable: false } });
  const refused = await RoomStream.open(a.url, token, '/v1/rooms/lobby/stream');
  expect(refused.status).toBe(429);
  const elsewhere = await connect({ url: b.url, token });
  elsewhere.close();

  raw.socket.resetAndDestroy();
  await stream.close();
  sessions[0]?.close();
  const freed = await eventually('three places', async () => {
    const again = await Promise.allSettled([client(token), client(token), client(token)]);
    for (const one of again)
      if (one.status === 'fulfilled' && again.some(({ status }) => status === 'rejected')) one.value.close();
    return again.every(({ status }) => status === 'fulfilled') && again;
  });
  expect(freed).toHaveLength(3);
  await expect(client(token)).rejects.toMatchObject({ error: { code: 'quota_exceeded' } });

  const [one] = sessions.slice(1);
  const join = async (n: number) => codeOf((await one?.ask('room.join', { room: `lobby${n || ''}` })) as Ack);
  expect([await join(0), await join(1), await join(2), await join(0)]).toEqual(['ok', 'ok', 'ok', 'ok']);
  expect(await join(3)).toBe('quota_exceeded');
  expect(codeOf((await one?.ask('room.leave', { room: 'lobby1' })) as Ack)).toBe('ok');
  expect(await join(3)).toBe('ok');
  before = await tables();
});
