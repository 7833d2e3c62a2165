import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { originAllowed } from '../../src/realtime/upgrade.js';
import { connect, Refused } from '../support/client.js';
import { openStage, RawClient, type Stage, tokenOf } from './stage.js';

let stage: Stage;
beforeAll(async () => {
  stage = await openStage({ allowedOrigins: ['https://app.example'] });
});
afterAll(() => stage.close());

const refusal = async (options: Omit<Parameters<typeof connect>[0], 'url'>) => {
  const thrown: unknown = await connect({ url: stage.url, ...options }).then(
    (client) => client.close(),
    (error: unknown) => error,
  );
  expect(thrown).toBeInstanceOf(Refused);
  return (thrown as Refused).error;
};

describe('[ERR1] a handshake that is refused says so as { code, message, retryable }', () => {
  test.each([
    ['no auth', {}],
    ['an empty token', { token: '' }],
    ['a number', { token: 7 }],
    ['an object', { token: { a: 1 } }],
    ['an array', { token: ['x'] }],
    ['null', { token: null }],
    ['no token of ours', { token: 'garbage' }],
    ['a token past any size', { token: 'x'.repeat(20_000) }],
    ['a key where a token is due', { key: 'tutti_live_x_y' }],
    ['a token in the prototype', JSON.parse('{"__proto__":{"token":"{}"}}')],
  ])('%s', async (_, auth) => {
    expect(await refusal({ auth })).toMatchObject({ code: 'unauthenticated', retryable: false });
  });

  test('a token that ended', async () => {
    expect(await refusal({ token: tokenOf({ error: 'token_expired' }) })).toMatchObject({ code: 'token_expired' });
  });

  test('a fault of a dependency refuses and tells nothing', async () => {
    const error = await refusal({ token: tokenOf({ error: 'fault' }) });
    expect(error).toEqual({ code: 'internal', message: 'Internal error.', retryable: true });
  });

  test('a user token, or a key that is no worker key, on /worker', async () => {
    expect(await refusal({ namespace: '/worker', auth: { token: tokenOf() } })).toMatchObject({
      code: 'unauthenticated',
    });
    expect(await refusal({ namespace: '/worker', auth: { key: tokenOf({ kind: 'server' }) } })).toMatchObject({
      code: 'forbidden',
    });
  });

  test('too many sessions of one user, and a place given back is given again', async () => {
    const token = tokenOf({ id: 'crowd' });
    const clients = await Promise.all(Array.from({ length: 5 }, () => connect({ url: stage.url, token })));
    expect(await refusal({ token })).toMatchObject({ code: 'quota_exceeded', retryable: false });
    clients[0]?.close();
    await expect.poll(() => connect({ url: stage.url, token }).then((client) => clients.push(client))).toBe(6);
    for (const client of clients) client.close();
  });

  test('a namespace that is not there', async () => {
    await expect(connect({ url: stage.url, namespace: '/control', token: tokenOf() })).rejects.toThrow(
      'Invalid namespace',
    );
  });
});

test('a token in the query string is refused, even beside a good one', async () => {
  const client = new RawClient(stage.port);
  client.upgrade(`/socket.io/?EIO=4&transport=websocket&token=abc`);
  await client.until('"sid"');
  client.frame(`40${JSON.stringify({ token: tokenOf() })}`);
  await client.until('"code":"unauthenticated"');
  client.socket.destroy();
});

test('session.ready comes once, first, with limits', async () => {
  const client = await connect({ url: stage.url, token: tokenOf({ id: 'rea' }) });
  const ready = await client.waitFor('session.ready');
  expect(ready).toMatchObject({ user: 'rea', tenant: 'demo', gateway: 'stage', limits: { rooms: 100 } });
  await client.call('room.join', { room: 'a' });
  expect(client.of('session.ready')).toHaveLength(1);
  expect(client.pushes[0]?.name).toBe('session.ready');
  client.close();
});

test('one connection gets one session, however often it asks while it is verified', async () => {
  const client = new RawClient(stage.port);
  client.upgrade();
  await client.until('"sid"');
  for (let i = 0; i < 3; i++) client.frame(`40${JSON.stringify({ token: tokenOf({ id: 'twice', delayMs: 50 }) })}`);
  await client.until('session.ready');
  expect(client.received.match(/session\.ready/g)).toHaveLength(1);
  expect(client.received.match(/"code":"conflict"/g)).toHaveLength(2);
  client.socket.destroy();
});

test('a client that leaves while it is verified leaves nothing behind', async () => {
  const token = tokenOf({ id: 'hasty', delayMs: 50 });
  for (let i = 0; i < 8; i++) {
    const client = new RawClient(stage.port);
    client.upgrade();
    await client.until('"sid"');
    client.frame(`40${JSON.stringify({ token })}`);
    client.socket.destroy();
  }
  await new Promise((resolve) => setTimeout(resolve, 150));
  const clients = await Promise.all(Array.from({ length: 5 }, () => connect({ url: stage.url, token })));
  for (const client of clients) client.close();
});

test('a socket that never presents a token is closed', async () => {
  const client = new RawClient(stage.port);
  client.upgrade();
  await client.until('"sid"');
  await client.closed;
});

test('a full gateway answers 503 before the upgrade, and serves again when somebody left', async () => {
  const full = await openStage({ maxConnections: 1 });
  const first = await connect({ url: full.url, token: tokenOf() });
  const second = new RawClient(full.port);
  second.upgrade();
  await second.until('HTTP/1.1 503');
  expect(second.received).toContain('"code":"overloaded","message":"This gateway is full.","retryable":true');
  expect(second.received).toContain('Retry-After: 1');
  second.socket.destroy();
  first.close();
  await expect
    .poll(() => connect({ url: full.url, token: tokenOf() }).then((client) => client.close()))
    .toBe(undefined);
  await full.close();
});

describe('Origin', () => {
  test.each([
    ['none', '', 'h:3000', true],
    ['the own one', 'http://h:3000', 'h:3000', true],
    ['a listed one', 'https://app.example', 'h:3000', true],
    ['another', 'https://evil.example', 'h:3000', false],
    ['another port', 'http://h:3001', 'h:3000', false],
    ['null', 'null', 'h:3000', false],
    ['no URL', 'garbage', 'h:3000', false],
    ['one that begins alike', 'https://app.example.evil', 'h:3000', false],
  ])('%s: %s', (_, origin, host, allowed) => {
    expect(originAllowed(origin, host, ['https://app.example'])).toBe(allowed);
    expect(originAllowed(origin, host, ['*'])).toBe(true);
  });

  test('a page of another origin gets 403 and no socket', async () => {
    const client = new RawClient(stage.port);
    client.upgrade(undefined, { Origin: 'https://evil.example' });
    await client.until('HTTP/1.1 403');
    expect(client.received).toContain('"code":"forbidden"');
    client.socket.destroy();
    const good = await connect({
      url: stage.url,
      token: tokenOf({ id: 'ori' }),
      extraHeaders: { Origin: 'https://app.example' },
    });
    good.close();
  });
});

describe('what is no WebSocket handshake never reaches Socket.IO', () => {
  test.each([
    ['polling', '/socket.io/?EIO=4&transport=polling', false],
    ['polling that posts', '/socket.io/?EIO=4&transport=polling&sid=x', false],
    ['polling dressed as an upgrade', '/socket.io/?EIO=4&transport=polling', true],
    ['webtransport', '/socket.io/?EIO=4&transport=webtransport', true],
    ['a transport of the prototype', '/socket.io/?EIO=4&transport=__proto__', true],
    ['no query', '/socket.io/', true],
    ['an unknown sid', '/socket.io/?EIO=4&transport=websocket&sid=garbage', true],
    ['a sid of the prototype', '/socket.io/?EIO=4&transport=websocket&sid=__proto__', true],
    ['an old Engine.IO', '/socket.io/?EIO=3&transport=websocket', true],
    ['a broken query', '/socket.io/?%%%&EIO=4&transport=%ff%00', true],
  ])('%s', async (_, target, upgrade) => {
    const client = new RawClient(stage.port);
    if (upgrade) client.upgrade(target);
    else client.request(target, {}, target.includes('sid') ? 'POST' : 'GET');
    await client.until('HTTP/1.1 400');
    client.socket.destroy();
  });

  test('the sid of a live connection does not open a second socket on it', async () => {
    const client = new RawClient(stage.port);
    await client.join('a', tokenOf({ id: 'sid' }));
    const sid = /"sid":"([^"]+)"/.exec(client.received)?.[1];
    const thief = new RawClient(stage.port);
    thief.upgrade(`/socket.io/?EIO=4&transport=websocket&sid=${sid}`);
    await thief.until('HTTP/1.1 400');
    client.frame('421["room.leave",{"room":"a"}]');
    await client.until('431[{"ok":true}]');
    client.socket.destroy();
    thief.socket.destroy();
  });
});

test('frames that are no Engine.IO close their own connection and nothing else', async () => {
  const bad: [string | Buffer, number][] = [
    ['', 1],
    ['9', 1],
    ['4', 1],
    ['4{"a":1}', 1],
    ['42', 1],
    ['42["disconnect"]', 1],
    ['42/nowhere,["a"]', 1],
    ['451-["x",{"_placeholder":true,"num":0}]', 1],
    ['4599999-["x"]', 1],
    ['40[]', 1],
    ['40null', 1],
    ['3', 1],
    [Buffer.from([0xff, 0xfe, 0x00]), 1],
    [Buffer.from([1, 2, 3]), 2],
    ['4'.repeat(300 * 1024), 1],
  ];
  for (const [payload, opcode] of bad) {
    const client = new RawClient(stage.port);
    client.upgrade();
    await client.until('"sid"');
    client.frame(payload, opcode);
    client.frame('42["event.publish"]');
    client.socket.end();
    await client.closed;
  }
  const client = await connect({ url: stage.url, token: tokenOf({ id: 'after' }) });
  await client.call('room.join', { room: 'a' });
  client.close();
});
