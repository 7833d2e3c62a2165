import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { RawClient } from '../realtime/stage.js';
import { connect } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { freshDatabase } from '../support/postgres.js';
import { devToken } from '../support/tokens.js';
import { RoomStream } from './feed-stream.js';
import { call, startPair, Undo, userToken } from './run-stage.js';
import { shell } from './tenants-made.js';

const undo = new Undo();
afterEach(() => undo.all());

const client = async (gateway: { url: string }, token: string) =>
  undo.add(await connect({ url: gateway.url, token }), (one) => one.close());
const chat = (room: string) => ({ room, type: 'chat', data: 1 });

describe('two gateways with one Redis', () => {
  const shared = new Undo();
  let a: GatewayProcess;
  let b: GatewayProcess;
  let env: Record<string, string>;
  beforeAll(async () => {
    // Polling alone would be too slow for these tests to pass: the hint over Redis has to do it.
    const more = {
      TUTTI_REVOCATION_POLL_MS: '30000',
      TUTTI_TOKEN_GRACE_MS: '500',
      TUTTI_ALLOWED_ORIGINS: 'https://app.example',
    };
    ({ a, b, env } = await startPair(shared, { env: more }));
  });
  afterAll(() => shared.all());

  test('[AUTH2] session.refresh changes what a session may do, at once and both ways', async () => {
    const ann = await client(a, await devToken({ user: 'ann', cap: { 'team.*': ['join'] } }));
    const codeOf = async (command: string, payload: object) => {
      const ack = await ann.ask(command, payload);
      return ack.ok ? 'ok' : ack.error.code;
    };
    await ann.call('room.join', { room: 'team.one' });
    expect(await codeOf('event.publish', chat('team.one'))).toBe('forbidden');
    expect(await codeOf('room.join', { room: 'other' })).toBe('forbidden');

    const cap = { 'team.*': ['join' as const, 'publish' as const], other: ['join' as const] };
    const refreshed = await ann.call('session.refresh', {
      token: await devToken({ user: 'ann', cap, ttlSeconds: 1800 }),
    });
    expect(refreshed.capabilities).toEqual(cap);
    expect(refreshed.expiresAt).toBeGreaterThan(Date.now() + 1_700_000);
    expect(await codeOf('event.publish', chat('team.one'))).toBe('ok');
    expect(await codeOf('room.join', { room: 'other' })).toBe('ok');
    await ann.waitFor('event');

    await ann.call('session.refresh', { token: await devToken({ user: 'ann', cap: { 'team.*': ['join'] } }) });
    expect(await codeOf('event.publish', chat('team.one'))).toBe('forbidden');
    expect(await codeOf('room.join', { room: 'other' })).toBe('forbidden');
    for (const token of [await devToken({ user: 'bob' }), await devToken({ user: 'ann', ttlSeconds: -5 }), 'x']) {
      expect(await ann.ask('session.refresh', { token })).toMatchObject({ ok: false });
    }
    expect(ann.disconnects).toEqual([]);
  });

  test('[AUTH2] rights that a refresh takes away end the reading of a room too', async () => {
    const ann = await client(a, await devToken({ user: 'ann', cap: { secret: ['join'], open: ['join'] } }));
    const writer = await client(b, await userToken('writer'));
    await ann.call('room.join', { room: 'secret' });
    await ann.call('room.join', { room: 'open' });
    await ann.call('session.refresh', { token: await devToken({ user: 'ann', cap: { open: ['join'] } }) });
    await writer.call('event.publish', chat('secret'));
    await writer.call('broadcast.send', chat('secret'));
    await writer.call('event.publish', chat('open'));
    await ann.waitFor('event', ({ room }) => room === 'open');
    await new Promise((wait) => setTimeout(wait, 300));
    expect(ann.of('event').map(({ room }) => room)).toEqual(['open']);
    expect(ann.of('broadcast')).toEqual([]);
  });

  test('[AUTH2] a session is told that its token ends, and closed when it did; a refreshed one lives on', async () => {
    const short = () => devToken({ user: 'short', ttlSeconds: 2 });
    const [ends, lives] = [await client(a, await short()), await client(b, await short())];
    const stream = undo.add(await RoomStream.open(a.url, await short(), '/v1/rooms/lobby/stream'), (one) =>
      one.close(),
    );
    await Promise.all([ends, lives].map((one) => one.waitFor('session.expiring')));
    await lives.call('session.refresh', { token: await devToken({ user: 'short' }) });
    const closing = await ends.waitFor('session.closing');
    expect(closing).toMatchObject({ code: 'token_expired', reconnect: false });
    await ends.until(() => ends.disconnects.length > 0, 'the end');
    await eventually('the stream ends', () => stream.ended);
    expect((await lives.call('room.join', { room: 'lobby' })).position.seq).toBe(0);
  });

  test('[AUTH3] a user revoked at the shell is out on every gateway within a second, over Redis', async () => {
    const token = await userToken('eve');
    const sessions = [await client(a, token), await client(b, token)];
    const bystander = await client(b, await userToken('bob'));
    const stream = undo.add(await RoomStream.open(b.url, token, '/v1/rooms/lobby/stream'), (one) => one.close());
    await shell(env, 'revoke', 'user', 'eve');
    for (const session of sessions) {
      // The promise is 1 s; the rest is for a busy machine.
      const closing = await session.waitFor('session.closing', () => true, 4000);
      expect(closing).toMatchObject({ code: 'unauthenticated', reconnect: false });
      await session.until(() => session.disconnects.length > 0, 'the end');
    }
    await eventually('the stream ends', () => stream.ended, 4000);
    for (const { url } of [a, b]) {
      await expect(connect({ url, token })).rejects.toMatchObject({ error: { code: 'unauthenticated' } });
      expect((await call(url, token, 'GET', '/v1/rooms')).status).toBe(401);
    }
    await bystander.call('room.join', { room: 'lobby' });
  });

  test('[AUTH3] a token, a key and a tenant are revoked likewise', async () => {
    const jti = 'the-one-that-leaked';
    const leaked = await devToken({ user: 'ann', claims: { jti } });
    const [session, other] = [await client(b, leaked), await client(b, await userToken('ann'))];
    await shell(env, 'revoke', 'token', jti);
    await session.waitFor('session.closing', () => true, 4000);
    expect(other.disconnects).toEqual([]);

    await shell(env, 'tenant', 'create', 'acme');
    const made = await shell(env, 'key', 'create', '--tenant', 'acme');
    const key = String(made.key);
    const minting = { user: 'ann', cap: { '*': ['join'] }, ttlSeconds: 600 };
    const { body } = await call(a.url, key, 'POST', '/v1/tokens', minting);
    const theirs = await client(a, (body as { token: string }).token);
    await shell(env, 'key', 'revoke', String(made.id));
    await eventually(
      'the key is refused',
      async () => (await call(b.url, key, 'GET', '/v1/rooms')).status === 401,
      4000,
    );
    expect(theirs.disconnects).toEqual([]);
    await shell(env, 'tenant', 'suspend', 'acme');
    await theirs.waitFor('session.closing', () => true, 4000);
    const token = (body as { token: string }).token;
    await expect(connect({ url: b.url, token })).rejects.toMatchObject({ error: { retryable: false } });
    await expect(other.call('room.join', { room: 'lobby' })).resolves.toBeDefined();
  });

  test('[AUTH4] a page of an origin that is not allowed opens no socket', async () => {
    const token = await userToken('ann');
    const own = `http://127.0.0.1:${a.port}`;
    for (const origin of ['https://app.example', own]) {
      const one = await connect({ url: a.url, token, extraHeaders: { origin } });
      await one.call('room.join', { room: 'lobby' });
      one.close();
    }
    const foreign = [
      'https://evil.example',
      'http://app.example',
      'https://app.example.evil.example',
      'https://app.example:444',
      `http://127.0.0.1:${b.port}`,
      'null',
      'nonsense',
    ];
    for (const origin of foreign) {
      await expect(connect({ url: a.url, token, extraHeaders: { origin } }), origin).rejects.toThrow();
      const raw = undo.add(new RawClient(a.port), (one) => one.socket.destroy());
      raw.upgrade(undefined, { Origin: origin });
      await raw.until('\r\n\r\n');
      expect(raw.received).toMatch(/^HTTP\/1\.1 403 /);
      const read = await fetch(`${a.url}/v1/rooms`, { headers: { origin, authorization: `Bearer ${token}` } });
      expect(read.headers.get('access-control-allow-origin')).toBeNull();
    }
  });
});

test('[AUTH3] without Redis a revoked user is out within the time of a poll', async () => {
  const database = undo.add(await freshDatabase(), ({ drop }) => drop());
  const env = { DATABASE_URL: database.url };
  const gateway = undo.add(await startGateway({ env }), (one) => one.stop());
  const token = await userToken('eve');
  const [session, bystander] = [await client(gateway, token), await client(gateway, await userToken('bob'))];
  await shell(env, 'revoke', 'user', 'eve');
  // The promise is 6 s; the rest is for a busy machine.
  await session.waitFor('session.closing', ({ code }) => code === 'unauthenticated', 9000);
  await expect(connect({ url: gateway.url, token })).rejects.toMatchObject({ error: { code: 'unauthenticated' } });
  expect(bystander.disconnects).toEqual([]);
});
