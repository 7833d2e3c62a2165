import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { as, jsonAs, RawConnection, type Stand, standUp, until } from './stand.js';

let stand: Stand;

beforeAll(async () => {
  stand = await standUp();
  stand.runs.add('r1', 'streaming');
});
afterAll(() => stand.close());
afterEach(async () => {
  expect((await fetch(`${stand.url}/healthz`)).status).toBe(200);
  expect(stand.rooms.events.size).toBe(0);
  expect(stand.runs.parts).toHaveLength(0);
  expect(stand.runs.runs.size).toBe(1);
});

const nested = (depth: number): string => '['.repeat(depth) + ']'.repeat(depth);
const events = '/v1/rooms/lobby/events';

async function post(path: string, body: string | Uint8Array, headers = jsonAs('ann')): Promise<[number, string]> {
  const response = await fetch(stand.url + path, { method: 'POST', headers, body });
  const problem = (await response.json()) as { code: string; status: number; detail: string };
  expect(response.headers.get('content-type')).toBe('application/problem+json');
  expect(problem.status).toBe(response.status);
  expect(problem.detail.length).toBeLessThan(400);
  return [response.status, problem.code];
}

describe('bodies', () => {
  test.each<[string, string]>([
    ['no object', '1'],
    ['null', 'null'],
    ['an array', '[]'],
    ['empty', ''],
    ['no JSON', '{"type":'],
    ['two documents', '{"type":"a","data":1}{"type":"a","data":1}'],
    ['a byte order mark', '\ufeff{"type":"a","data":1}'],
    ['a missing field', '{"type":"chat"}'],
    ['a wrong type', '{"type":1,"data":1}'],
    ['an unknown field', '{"type":"chat","data":1,"seq":5}'],
    ['a room beside the path', '{"type":"chat","data":1,"room":"other"}'],
    ['an own __proto__', '{"type":"chat","data":1,"__proto__":{"room":"x"}}'],
    ['a reserved type', '{"type":"run.created","data":1}'],
    ['another reserved type', '{"type":"room.erased","data":1}'],
    ['an upper-case type', '{"type":"Chat","data":1}'],
    ['a type too long', `{"type":"${'a'.repeat(65)}","data":1}`],
    ['a server-made mid', '{"type":"chat","data":1,"mid":"run:1:end"}'],
    ['an empty mid', '{"type":"chat","data":1,"mid":""}'],
    ['depth 33', `{"type":"chat","data":${nested(33)}}`],
    ['depth 60,000', `{"type":"chat","data":${nested(60_000)}}`],
  ])('[ERR1] %s is bad_request', async (_, body) => {
    expect(await post(events, body)).toEqual([400, 'bad_request']);
  });

  test.each<[string, string]>([
    ['64 KiB + 1 of data', `{"type":"chat","data":"${'x'.repeat(64 * 1024 - 1)}"}`],
    ['64 KiB + 1 in three-byte characters', `{"type":"chat","data":"${'€'.repeat(22 * 1024)}"}`],
    ['a body past the limit', `{"type":"chat","data":"${'x'.repeat(400 * 1024)}"}`],
  ])('[ERR1] %s is payload_too_large', async (_, body) => {
    expect(await post(events, body)).toEqual([413, 'payload_too_large']);
  });

  test('[ERR1] a body without a length is cut at the limit', async () => {
    const raw = new RawConnection(stand.port);
    raw.send(
      `POST ${events} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ann\r\n` +
        'content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n',
    );
    for (let sent = 0; raw.received === '' && sent < 500; sent++) {
      raw.send(`4000\r\n${' '.repeat(0x4000)}\r\n`);
      await new Promise((wait) => setTimeout(wait, 2));
    }
    expect(await raw.status()).toBe(413);
    raw.socket.destroy();
  });

  test('[ERR1] invalid UTF-8 is bad_request', async () => {
    const body = Buffer.concat([Buffer.from('{"type":"chat","data":"'), Buffer.from([0xc3, 0x28]), Buffer.from('"}')]);
    expect(await post(events, body)).toEqual([400, 'bad_request']);
  });

  test.each([
    'text/plain',
    'application/json; charset=latin1',
    'multipart/form-data; boundary=x',
    'application/x-ndjson',
  ])('[ERR1] %s is no JSON', async (type) => {
    expect(await post(events, '{"type":"chat","data":1}', as('ann', { 'content-type': type }))).toEqual([
      400,
      'bad_request',
    ]);
  });
});

describe('URLs', () => {
  const request = async (path: string, more = ''): Promise<RawConnection> => {
    const raw = new RawConnection(stand.port);
    raw.send(`GET ${path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ann\r\n${more}\r\n`);
    await raw.status();
    raw.socket.destroy();
    return raw;
  };

  test.each([
    '%2e%2e',
    '..',
    'a%2Fb',
    '%2F',
    'a%00',
    '%00',
    'a'.repeat(129),
    '-a',
    '!runs',
    'a%20b',
    'r%C3%A4ume',
    '%ff',
    '%',
    '*',
    'acme:!runs',
    "a';drop",
  ])('[ERR1] the room %s is refused', async (room) => {
    const { received } = await request(`/v1/rooms/${room}/events`);
    expect(received).toMatch(/^HTTP\/1\.1 400 /);
    expect(received).toContain('"code":"bad_request"');
  });

  test.each([
    'limit=0',
    'limit=501',
    'limit=1e2',
    'limit=',
    'limit=%201',
    'limit=-1',
    'limit=0x10',
    'after=99999999999999999',
    'limit=1&limit=2',
    'limit=1&%6cimit=2',
    'unknown=1',
    '__proto__=1',
    'order=up',
    'a=%ff',
    'token=x',
    'access_token=x',
    'API_KEY=x',
  ])('[ERR1] the query %s is refused', async (query) => {
    const { received } = await request(`/v1/rooms/lobby/events?${query}`);
    expect(received).toMatch(/^HTTP\/1\.1 400 /);
    expect(received).toContain('"code":"bad_request"');
  });

  test('[ERR1] headers too large are refused and the process lives', async () => {
    const { received, closed } = await request('/v1/rooms', `x-big: ${'a'.repeat(100_000)}\r\n`);
    expect(closed || /^HTTP\/1\.1 [45]/.test(received)).toBe(true);
  });

  test.each(['GET\r\n\r\n', 'GET / HTTP/9.9\r\n\r\n', '\x16\x03\x01\x02\x00\x01', '{"a":1}\r\n\r\n'])(
    'what is no HTTP ends the connection only: %j',
    async (bytes) => {
      const raw = new RawConnection(stand.port);
      raw.send(bytes);
      raw.send('\r\n\r\n');
      await until(() => raw.closed || raw.received !== '');
      raw.socket.destroy();
    },
  );
});

describe('credentials', () => {
  test.each<[string, Record<string, string>, number, string]>([
    ['none', {}, 401, 'unauthenticated'],
    ['empty', { authorization: '' }, 401, 'unauthenticated'],
    ['no scheme', { authorization: 'ann' }, 401, 'unauthenticated'],
    ['another scheme', { authorization: 'Basic ann' }, 401, 'unauthenticated'],
    ['an empty bearer', { authorization: 'Bearer ' }, 401, 'unauthenticated'],
    ['two tokens', { authorization: 'Bearer ann ann' }, 401, 'unauthenticated'],
    ['unknown', { authorization: 'Bearer nobody' }, 401, 'unauthenticated'],
    ['ended', { authorization: 'Bearer ended' }, 401, 'token_expired'],
    ['without the right', { authorization: 'Bearer guest' }, 403, 'forbidden'],
  ])('[ERR1] %s', async (_, headers, status, code) => {
    const body = '{"type":"chat","data":1}';
    expect(await post(events, body, { 'content-type': 'application/json', ...headers })).toEqual([status, code]);
  });

  test('[ISO1] a room without the right and a room that does not exist answer alike', async () => {
    const answer = async (room: string) => {
      const response = await fetch(`${stand.url}/v1/rooms/${room}`, { headers: as('guest') });
      return [response.status, await response.text()];
    };
    expect(await answer('other')).toEqual(await answer('nowhere'));
  });
});

describe('connections', () => {
  const head = (path: string, more: string) =>
    `POST ${path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ann\r\ncontent-type: application/json\r\n${more}\r\n\r\n`;

  test('a body that breaks off is dropped', async () => {
    const raw = new RawConnection(stand.port);
    raw.send(`${head(events, 'content-length: 100')}{"type":"chat"`);
    await new Promise((wait) => setTimeout(wait, 50));
    raw.socket.destroy();
    await until(() => stand.log.lines.some(({ fields }) => 'status' in fields && fields.status === 499));
  });

  test('a body that never comes is ended by the server', async () => {
    const raw = new RawConnection(stand.port);
    raw.send(`${head(events, 'content-length: 100')}{`);
    const deadline = Date.now() + 25_000;
    while (!raw.closed && Date.now() < deadline) await new Promise((wait) => setTimeout(wait, 100));
    expect(raw.closed).toBe(true);
  });

  test('an aborted stream and an aborted claim leave nothing behind', async () => {
    const abort = new AbortController();
    await fetch(`${stand.url}/v1/rooms/lobby/stream`, { headers: as('ann'), signal: abort.signal });
    expect(stand.rooms.viewers.size).toBe(1);
    const claim = fetch(`${stand.url}/v1/worker/claims`, {
      method: 'POST',
      headers: jsonAs('worker'),
      body: '{"models":["none"],"waitMs":30000}',
      signal: abort.signal,
    }).catch(() => 'aborted');
    await new Promise((wait) => setTimeout(wait, 50));
    abort.abort();
    expect(await claim).toBe('aborted');
    await until(() => stand.rooms.viewers.size === 0);
  });
});

describe('lines of a worker', () => {
  const chunks = '/v1/worker/runs/r1/chunks';
  const headers = as('worker', { 'content-type': 'application/x-ndjson', 'tutti-fence': '1' });

  test.each<[string, string, number, string]>([
    ['no JSON', 'x\n', 400, 'bad_request'],
    ['an unknown part', '{"n":0,"part":{"type":"nonsense"}}\n', 400, 'bad_request'],
    ['a delta without text', '{"n":0,"part":{"type":"text-delta","id":"1"}}\n', 400, 'bad_request'],
    ['an unknown field', '{"n":0,"part":{"type":"start"},"fence":2}\n', 400, 'bad_request'],
    ['a negative number', '{"n":-1,"part":{"type":"start"}}\n', 400, 'bad_request'],
    ['too deep', `{"n":0,"part":{"type":"data-x","data":${nested(33)}}}\n`, 400, 'bad_request'],
    ['much too deep', `{"n":0,"part":{"type":"data-x","data":${nested(20_000)}}}\n`, 400, 'bad_request'],
    ['a line too long', `{"n":0,"part":{"type":"data-x","data":"${'x'.repeat(70_000)}"}}\n`, 413, 'payload_too_large'],
    ['a line without an end', 'x'.repeat(200_000), 413, 'payload_too_large'],
    ['a gap', '{"n":3,"part":{"type":"start"}}\n', 409, 'out_of_order'],
  ])('[ERR1] %s', async (_, body, status, code) => {
    expect(await post(chunks, body, headers)).toEqual([status, code]);
  });

  test('[RUN2] another fence is fenced; a bad one is bad_request', async () => {
    const body = '{"n":0,"part":{"type":"start"}}\n';
    expect(await post(chunks, body, { ...headers, 'tutti-fence': '2' })).toEqual([409, 'fenced']);
    expect(await post(chunks, body, { ...headers, 'tutti-fence': 'x' })).toEqual([400, 'bad_request']);
    expect(await post(chunks, body, as('worker', { 'content-type': 'application/x-ndjson' }))).toEqual([
      400,
      'bad_request',
    ]);
  });
});
