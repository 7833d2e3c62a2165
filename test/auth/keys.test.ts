import { expect, test } from 'vitest';
import { ConnectionLimits, TokenBucket } from '../../src/core/limits.js';
import type { Principal } from '../../src/core/principal.js';
import { devToken } from '../support/tokens.js';
import { SERVER_KEY, setUp, WORKER_KEY } from './setup.js';

test('keys give servers and workers', async () => {
  const { auth } = await setUp();
  expect(await auth.bearer(SERVER_KEY)).toMatchObject({ kind: 'server', id: 'server1', tenant: 'acme' });
  expect(await auth.key(WORKER_KEY)).toMatchObject({ kind: 'worker', tenant: 'acme', capabilities: {} });
});

test.each([
  ['another secret', `tutti_live_server1_${'x'.repeat(40)}`],
  ['an unknown id', `tutti_live_nobody1_${'s'.repeat(40)}`],
  ['a secret cut short', SERVER_KEY.slice(0, -1)],
  ['no secret', 'tutti_live_server1_'],
  ['only the prefix', 'tutti_live_'],
  ['another prefix', SERVER_KEY.replace('live', 'test')],
  ['a token', 'a.b.c'],
])('[ERR1] a key with %s is refused', async (_, key) => {
  const { auth } = await setUp();
  await expect(auth.key(key)).rejects.toMatchObject({ code: 'unauthenticated' });
});

test('[ISO1] a server key mints for its own tenant only', async () => {
  const { auth } = await setUp();
  const server = await auth.key(SERVER_KEY);
  const { token, expiresAt } = await auth.mint(server, { user: 'bob', cap: { 'a*': ['join'] }, ttlSeconds: 60 });
  expect(await auth.token(token)).toMatchObject({
    id: 'bob',
    tenant: 'acme',
    capabilities: { 'a*': ['join'] },
    expiresAt,
  });
  const worker = await auth.key(WORKER_KEY);
  const body = { user: 'bob', cap: {}, ttlSeconds: 60 };
  await expect(auth.mint(worker, body)).rejects.toMatchObject({ code: 'forbidden' });
  await expect(auth.mint(server, { ...body, ttlSeconds: 86_401 })).rejects.toMatchObject({ code: 'bad_request' });
  await expect(auth.mint(server, { ...body, info: 'x'.repeat(1024) })).rejects.toMatchObject({ code: 'bad_request' });
  await expect(auth.mint(server, { ...body, name: 'a\u0001' })).rejects.toMatchObject({ code: 'bad_request' });
});

test('revocations refuse what was issued before them, and only that', async () => {
  const { auth, directory, revocations } = await setUp();
  const seen: string[] = [];
  revocations.onRevoked((one) => seen.push(`${one.kind}:${one.subject}`));
  const iat = Math.floor(Date.now() / 1000) - 10;
  const old = await devToken({ user: 'ann', claims: { iat, jti: 'j1' } });
  const other = await devToken({ user: 'bob', claims: { iat, jti: 'j2' } });
  const principal = await auth.token(old);
  const revocation = await directory.revoke({ tenant: 'demo', kind: 'user', subject: 'ann' });
  await directory.revoke({ tenant: 'acme', kind: 'user', subject: 'bob' });
  await directory.revoke({ tenant: 'acme', kind: 'key', subject: 'server1' });
  revocations.poke();
  await expect.poll(() => seen).toEqual(['user:ann', 'user:bob', 'key:server1']);
  expect(revocations.applies(revocation, principal)).toBe(true);
  expect(revocations.applies({ ...revocation, tenant: 'acme' }, principal)).toBe(false);
  await expect(auth.token(old)).rejects.toMatchObject({ code: 'unauthenticated' });
  await expect(auth.key(SERVER_KEY)).rejects.toMatchObject({ code: 'unauthenticated' });
  await auth.key(WORKER_KEY);
  await auth.token(other);
  await auth.token(await devToken({ user: 'ann', claims: { iat: Math.floor(Date.now() / 1000) + 2 } }));
  await directory.revoke({ tenant: 'demo', kind: 'token', subject: 'j2' });
  await expect
    .poll(() =>
      auth.token(other).then(
        () => 'ok',
        (error) => error.code,
      ),
    )
    .toBe('unauthenticated');
  revocations.stop();
});

test('a bucket gives its burst, then its pace', () => {
  let now = 0;
  const bucket = new TokenBucket(10, 20, () => now);
  for (let i = 0; i < 20; i++) expect(bucket.take()).toBe(0);
  expect(bucket.take()).toBe(100);
  now += 100;
  expect(bucket.take()).toBe(0);
  expect(bucket.take(5)).toBe(500);
  now += 1e9;
  expect(bucket.take(21)).toBeGreaterThan(0);
  expect(bucket.take(20)).toBe(0);
});

test('sessions are bounded by user, tenant and gateway', () => {
  const limits = new ConnectionLimits({ total: 4, perTenant: 3, perUser: 2 });
  const user = (id: string, tenant = 'a'): Principal => ({ kind: 'user', id, tenant, capabilities: {} });
  const release = limits.admit(user('u'));
  limits.admit(user('u'));
  expect(() => limits.admit(user('u'))).toThrow(expect.objectContaining({ code: 'quota_exceeded' }));
  limits.admit(user('v'));
  expect(() => limits.admit(user('w'))).toThrow(expect.objectContaining({ code: 'quota_exceeded' }));
  limits.admit(user('u', 'b'));
  expect(() => limits.admit(user('x', 'c'))).toThrow(expect.objectContaining({ code: 'overloaded' }));
  release();
  release();
  limits.admit(user('u'));
  expect(() => limits.admit(user('x', 'c'))).toThrow(expect.objectContaining({ code: 'overloaded' }));
});
