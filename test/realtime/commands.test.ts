import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { MAX_DATA_BYTES } from '../../src/protocol/primitives.js';
import { connect, type TestClient } from '../support/client.js';
import { openStage, RawClient, type Stage, tokenOf } from './stage.js';

let stage: Stage;
let client: TestClient;
beforeAll(async () => {
  stage = await openStage({ rates: { perSession: 1000, perTenant: 10_000 } });
  client = await connect({ url: stage.url, token: tokenOf() });
  await client.call('room.join', { room: 'lobby' });
});
afterAll(async () => {
  client.close();
  await stage.close();
});

const deep = (levels: number): unknown => (levels === 0 ? 1 : [deep(levels - 1)]);
const publish = (data: unknown) => ({ room: 'lobby', type: 'a', data });

describe('[ERR1] bad input gets a code, changes nothing and every command is answered once', () => {
  test.each<[string, string, unknown, string]>([
    ['an unknown command', 'room.destroy', {}, 'bad_request'],
    ['a name of the prototype', '__proto__', {}, 'bad_request'],
    ['another', 'constructor', {}, 'bad_request'],
    ['an event Node treats specially', 'error', {}, 'bad_request'],
    ['no object', 'room.join', 'lobby', 'bad_request'],
    ['an array', 'room.join', [], 'bad_request'],
    ['null', 'room.join', null, 'bad_request'],
    ['a missing field', 'event.publish', { room: 'lobby', type: 'a' }, 'bad_request'],
    ['an unknown field', 'room.join', { room: 'lobby', admin: true }, 'bad_request'],
    ['a wrong type', 'room.join', { room: 7 }, 'bad_request'],
    ['a hostile room name', 'room.join', { room: '../other' }, 'bad_request'],
    ['a room name of a channel', 'room.join', { room: '!runs' }, 'bad_request'],
    ['a reserved type', 'event.publish', { room: 'lobby', type: 'run.completed', data: 1 }, 'bad_request'],
    ['binary where an object is due', 'room.join', Buffer.from('x'), 'bad_request'],
    ['binary data', 'event.publish', publish(Buffer.from('x')), 'bad_request'],
    ['binary deep in the data', 'broadcast.send', publish({ a: [Buffer.from('x')] }), 'bad_request'],
    ['depth 33', 'event.publish', publish(deep(33)), 'bad_request'],
    ['64 KiB + 1', 'event.publish', publish('x'.repeat(MAX_DATA_BYTES - 1)), 'payload_too_large'],
    ['no right', 'session.refresh', { token: 'garbage' }, 'unauthenticated'],
  ])('%s', async (_, command, payload, code) => {
    const before = stage.rooms.published.length;
    expect(await client.ask(command, payload)).toMatchObject({ ok: false, error: { code } });
    expect(stage.rooms.published).toHaveLength(before);
  });

  test('missing payload and extra arguments', async () => {
    const { socket } = client;
    expect(await socket.emitWithAck('room.join')).toMatchObject({ ok: false, error: { code: 'bad_request' } });
    expect(await socket.emitWithAck('room.join', { room: 'lobby' }, 1)).toMatchObject({ ok: false });
    expect(await socket.emitWithAck('room.join', { room: 'lobby' }, Buffer.from('x'))).toMatchObject({ ok: false });
  });

  test('what is just allowed passes: 64 KiB, depth 32', async () => {
    await client.call('event.publish', publish('x'.repeat(MAX_DATA_BYTES - 2)));
    await client.call('event.publish', publish(deep(32)));
  });

  test('__proto__ is plain data, and no field of a command', async () => {
    const raw = new RawClient(stage.port);
    await raw.join('lobby', tokenOf({ id: 'proto' }));
    raw.frame('421["event.publish",{"room":"lobby","type":"a","data":{"__proto__":{"polluted":1}}}]');
    await raw.until('431[{"ok":true');
    await raw.until('{"__proto__":{"polluted":1}}');
    raw.frame('422["room.join",{"room":"lobby","__proto__":{"from":"start"}}]');
    await raw.until('432[');
    expect(({} as { polluted?: number }).polluted).toBeUndefined();
    raw.socket.destroy();
  });

  test('a command without an ack is executed', async () => {
    const count = stage.rooms.published.length;
    client.socket.emit('event.publish', publish('quiet'));
    await client.waitFor('event', ({ data }) => data === 'quiet');
    expect(stage.rooms.published).toHaveLength(count + 1);
    client.socket.emit('no.such', {});
    client.socket.emit('event.publish');
    await client.call('room.join', { room: 'lobby' });
  });

  test('a fault inside becomes `internal` and tells nothing', async () => {
    const history = stage.rooms.history;
    stage.rooms.history = () => Promise.reject(new Error('secret'));
    expect(await client.ask('event.history', { room: 'lobby' })).toEqual({
      ok: false,
      error: { code: 'internal', message: 'Internal error.', retryable: true },
    });
    stage.rooms.history = history;
    expect(stage.recorder.lines.join('\n')).toContain('command failed');
  });
});

test('every command of the table is answered', async () => {
  const history = await client.call('event.history', { room: 'lobby' });
  expect(history.events.at(0)).toMatchObject({ room: 'lobby', seq: 1 });
  expect(await client.call('broadcast.send', { room: 'lobby', type: 'b', data: 1 })).toEqual({ ok: true });
  expect((await client.call('run.create', { room: 'lobby', model: 'm', input: 1 })).run.state).toBe('queued');
  expect((await client.call('run.cancel', { run: 'r0' })).run.state).toBe('cancelled');
  expect(await client.call('room.leave', { room: 'lobby' })).toEqual({ ok: true });
  expect(await client.ask('room.leave', { room: 'lobby' })).toMatchObject({ error: { code: 'not_joined' } });
  await client.call('room.join', { room: 'lobby' });
});

test('an operator event name that is a number is answered', async () => {
  const raw = new RawClient(stage.port);
  await raw.join('lobby', tokenOf({ id: 'num' }));
  raw.frame('425[7,{}]');
  await raw.until('435[{"ok":false,"error":{"code":"bad_request"');
  // Without any payload, which Socket.IO's parser lets through.
  raw.frame('42');
  raw.frame('426');
  await raw.until('436[{"ok":false,"error":{"code":"bad_request"');
  raw.socket.destroy();
});

test('no token and no message body is ever logged', () => {
  const text = stage.recorder.lines.join('\n');
  expect(text).not.toContain('capabilities');
  expect(text).not.toContain('xxxxx');
});

describe('a flood from one session', () => {
  test('is refused with rate_limited and retryAfterMs, and others are served', async () => {
    const small = await openStage({ rates: { perSession: 10, perTenant: 10_000 } });
    const flooder = await connect({ url: small.url, token: tokenOf({ id: 'flood' }) });
    const answers = await Promise.all(Array.from({ length: 40 }, () => flooder.ask('room.join', { room: 'a' })));
    const refused = answers.filter((answer) => !answer.ok);
    expect(refused.length).toBeGreaterThan(10);
    // The first when it came, those behind it unread: all alike, each counted.
    for (const answer of refused) {
      expect(answer).toMatchObject({
        error: { code: 'rate_limited', retryable: true, retryAfterMs: expect.any(Number) },
      });
    }
    const counted = ['session', 'standing'].map((scope) => small.recorder.counts.get(`rate_limited ${scope}`) ?? 0);
    expect((counted[0] ?? 0) + (counted[1] ?? 0)).toBe(refused.length);
    expect(counted[0]).toBeGreaterThan(0);
    expect((refused[0] as { error: { retryAfterMs: number } }).error.retryAfterMs).toBeGreaterThan(0);
    const other = await connect({ url: small.url, token: tokenOf({ id: 'calm' }) });
    await other.call('room.join', { room: 'a' });

    for (let i = 0; i < 150; i++) flooder.socket.emit('room.join', { room: 'a' });
    const closing = await flooder.waitFor('session.closing');
    expect(closing).toMatchObject({ code: 'rate_limited', reconnect: true });
    await flooder.until(() => flooder.disconnects.length > 0);
    await other.call('room.join', { room: 'a' });
    other.close();
    await small.close();
  });

  test('of a whole tenant is limited too', async () => {
    const small = await openStage({ rates: { perSession: 100, perTenant: 5 } });
    const one = await connect({ url: small.url, token: tokenOf({ id: 'one' }) });
    const two = await connect({ url: small.url, token: tokenOf({ id: 'two', tenant: 'other' }) });
    const answers = await Promise.all(Array.from({ length: 20 }, () => one.ask('room.join', { room: 'a' })));
    expect(answers.filter((answer) => !answer.ok).length).toBeGreaterThan(5);
    await two.call('room.join', { room: 'a' });
    expect(small.recorder.counts.get('rate_limited tenant')).toBeGreaterThan(0);
    one.close();
    two.close();
    await small.close();
  });

  test('before any token ends the connection', async () => {
    const small = await openStage({ rates: { perSession: 1, perTenant: 100 } });
    const raw = new RawClient(small.port);
    raw.upgrade();
    await raw.until('"sid"');
    for (let i = 0; i < 400; i++) raw.frame('40/nowhere,{}');
    await raw.closed;
    expect(small.recorder.counts.get('rate_limited connection')).toBe(1);
    await small.close();
  });
});
