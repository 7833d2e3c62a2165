import { generateKeyPairSync } from 'node:crypto';
import { SignJWT, UnsecuredJWT } from 'jose';
import { describe, expect, test } from 'vitest';
import { Keyring } from '../../src/core/keyring.js';
import type { ErrorCode } from '../../src/errors.js';
import { DEV_SECRET, type DevToken, devToken } from '../support/tokens.js';
import { hs256, setUp } from './setup.js';

const { auth, directory } = await setUp();
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 });
const now = () => Math.floor(Date.now() / 1000);
const publicPem = rsa.publicKey.export({ type: 'spki', format: 'pem' }).toString();
await directory.putIssuer({
  ...hs256('acme', 'rsa'),
  algorithms: ['RS256', 'HS256'],
  keys: { kind: 'jwk', jwk: rsa.publicKey.export({ format: 'jwk' }) },
});
await directory.putIssuer(hs256(null, 'operator'));
await directory.putIssuer({ ...hs256('acme', 'typed'), typ: 'at+jwt' });
await directory.putTenant({ id: 'asleep', name: '', status: 'suspended' });

const claims = () => ({ aud: 'tutti', sub: 'ann', iat: now(), exp: now() + 60, cap: { '*': ['join'] } });
const rs256 = () => new SignJWT({ ...claims(), iss: 'rsa' }).setProtectedHeader({ alg: 'RS256' }).sign(rsa.privateKey);

describe('tokens that are good', () => {
  test('[ISO1] the tenant comes from the issuer', async () => {
    const principal = await auth.token(await devToken({ user: 'ann', name: 'Ann', claims: { info: { a: 1 } } }));
    expect(principal).toMatchObject({ kind: 'user', id: 'ann', name: 'Ann', tenant: 'demo', info: { a: 1 } });
    expect(principal.expiresAt).toBeGreaterThan(Date.now());
    expect(principal.tokenId).toBeTypeOf('string');
  });
  test('a static public key', async () => {
    expect(await auth.bearer(await rs256())).toMatchObject({ tenant: 'acme', id: 'ann' });
  });
  test("[ISO1] the operator's issuer names an active tenant", async () => {
    const of = (tenant: unknown) =>
      devToken({ claims: { iss: 'operator', tenant } }).then((token) => auth.token(token));
    expect(await of('acme')).toMatchObject({ tenant: 'acme' });
    await expect(of('nobody')).rejects.toMatchObject({ code: 'unauthenticated' });
    await expect(of(undefined)).rejects.toMatchObject({ code: 'unauthenticated' });
    await expect(of('../acme')).rejects.toMatchObject({ code: 'unauthenticated' });
    await expect(of('asleep')).rejects.toMatchObject({ code: 'forbidden' });
  });
});

const wrong: Record<string, DevToken & { code?: ErrorCode }> = {
  'another secret': { secret: 'x'.repeat(32) },
  'an unknown issuer': { claims: { iss: 'who' } },
  'no issuer': { claims: { iss: undefined } },
  'an issuer with a NUL': { claims: { iss: 'tutti\u0000dev' } },
  'another audience': { claims: { aud: 'other' } },
  'no audience': { claims: { aud: undefined } },
  'no subject': { claims: { sub: undefined } },
  'a subject that is no text': { claims: { sub: 7 } },
  'a subject too long': { user: 'u'.repeat(257) },
  'a subject with a NUL': { user: 'a\u0000b' },
  'no exp': { claims: { exp: undefined } },
  'no iat': { claims: { iat: undefined } },
  'exp as text': { claims: { exp: 'tomorrow' } },
  'a life too long': { ttlSeconds: 86_401 },
  'an iat in the future': { claims: { iat: now() + 600, exp: now() + 700 } },
  'an nbf in the future': { claims: { nbf: now() + 600 } },
  'its end behind it': { ttlSeconds: -60, claims: { iat: now() - 120 }, code: 'token_expired' },
  'no capabilities': { claims: { cap: undefined } },
  'unknown rights': { claims: { cap: { '*': ['everything'] } } },
  'a hostile pattern': { claims: { cap: { '../*': ['join'] } } },
  'capabilities as a list': { claims: { cap: ['join'] } },
  'too many patterns': { claims: { cap: Object.fromEntries(Array.from({ length: 257 }, (_, i) => [`r${i}`, []])) } },
  'a name too long': { name: 'n'.repeat(257) },
  'an info too large': { claims: { info: 'i'.repeat(1024) } },
  'another tenant': { claims: { tenant: 'acme' } },
};

describe('[ERR1] tokens that are refused', () => {
  for (const [title, { code = 'unauthenticated', ...token }] of Object.entries(wrong)) {
    test(title, async () => {
      const text = await devToken(token);
      await expect(auth.token(text)).rejects.toMatchObject({ name: 'TuttiError', code });
    });
  }

  const texts: Record<string, () => string | Promise<string>> = {
    nothing: () => '',
    'no JWT': () => 'hello',
    'three dots': () => '...',
    'a payload that is no object': () => `${btoa('{"alg":"HS256"}')}.${btoa('[]')}.x`,
    'a very long one': () => `a.${'b'.repeat(100_000)}.c`,
    'alg none': () => new UnsecuredJWT({ ...claims(), iss: 'tutti-dev' }).encode(),
    'a public key used as HS256 secret': () =>
      new SignJWT({ ...claims(), iss: 'rsa' })
        .setProtectedHeader({ alg: 'HS256' })
        .sign(new TextEncoder().encode(publicPem)),
    'RS256 for an HS256 issuer': () =>
      new SignJWT({ ...claims(), iss: 'tutti-dev' }).setProtectedHeader({ alg: 'RS256' }).sign(rsa.privateKey),
    'HS512 for an HS256 issuer': () =>
      new SignJWT({ ...claims(), iss: 'tutti-dev' })
        .setProtectedHeader({ alg: 'HS512' })
        .sign(new TextEncoder().encode(DEV_SECRET.repeat(2))),
    'a typ that is due and missing': () => devToken({ claims: { iss: 'typed' } }),
    'a typ of another use': () =>
      new SignJWT({ ...claims(), iss: 'tutti-dev' })
        .setProtectedHeader({ alg: 'HS256', typ: 'logout+jwt' })
        .sign(new TextEncoder().encode(DEV_SECRET)),
    'a changed payload': async () => {
      const [head = '', , signature = ''] = (await devToken()).split('.');
      const { payload } = { payload: btoa(JSON.stringify({ ...claims(), iss: 'tutti-dev', sub: 'eve' })) };
      return `${head}.${payload.replace(/=+$/, '')}.${signature}`;
    },
  };
  for (const [title, make] of Object.entries(texts)) {
    test(title, async () => {
      const text = await make();
      const refusal = await auth.token(text).catch((error: unknown) => error);
      expect(refusal).toMatchObject({ name: 'TuttiError', code: 'unauthenticated' });
      expect(JSON.stringify(refusal)).not.toContain(DEV_SECRET);
    });
  }
});

test('[ERR1] a clock 4 s off is forgiven', async () => {
  await auth.token(await devToken({ claims: { iat: now() + 4, exp: now() + 60 } }));
  await auth.token(await devToken({ claims: { iat: now() - 60, exp: now() - 3 } }));
});

test('[ERR1] a directory that does not answer denies', async () => {
  const { auth, directory } = await setUp();
  directory.failing = true;
  await expect(auth.token(await devToken())).rejects.toMatchObject({ code: 'log_unavailable', status: 503 });
});

test('[LIM1] a flood of random names pushes out nobody who is known', async () => {
  const { directory } = await setUp();
  let now = 0;
  const keyring = new Keyring(directory, { pollMs: 60_000, now: () => now });
  expect(await keyring.issuer('tutti-dev')).toBeDefined();
  const asked = directory.asked.issuer;
  for (let i = 0; i < 6000; i += 1) {
    now += 20;
    expect(await keyring.issuer(`random-${i}`)).toBeUndefined();
  }
  expect(directory.asked.issuer).toBe(asked + 6000);
  for (let i = 0; i < 300; i += 1) await keyring.issuer(`more-${i}`).catch(() => undefined);
  await expect(keyring.issuer('one more')).rejects.toMatchObject({ code: 'overloaded' });
  expect(await keyring.issuer('tutti-dev')).toBeDefined();
});

test('a flood of random issuers becomes few queries', async () => {
  const { auth, directory } = await setUp();
  await auth.token(await devToken());
  const before = directory.asked.issuer;
  const token = await devToken();
  const [head = '', payload = '', signature = ''] = token.split('.');
  const body = JSON.parse(Buffer.from(payload, 'base64url').toString());
  const codes = new Set<string>();
  for (let i = 0; i < 2000; i++) {
    const iss = Buffer.from(JSON.stringify({ ...body, iss: `random-${i}` })).toString('base64url');
    codes.add(
      await auth.token(`${head}.${iss}.${signature}`).then(
        () => 'ok',
        (error) => error.code,
      ),
    );
  }
  expect(directory.asked.issuer - before).toBeLessThan(1000);
  expect([...codes].sort()).toEqual(['overloaded', 'unauthenticated']);
  expect(await auth.token(token)).toMatchObject({ id: 'ann' });
});

test('[ISO1] in production the tenant demo is not served', async () => {
  const { auth } = await setUp({ demo: false });
  await expect(auth.token(await devToken())).rejects.toMatchObject({ code: 'unauthenticated' });
});

test('a changed issuer counts within the poll', async () => {
  const { auth, directory } = await setUp({ pollMs: 50 });
  const token = await devToken();
  await auth.token(token);
  await directory.putIssuer(hs256('demo', 'tutti-dev', 'another secret of 32 bytes at least'));
  await expect
    .poll(() =>
      auth.token(token).then(
        () => 'ok',
        (error) => error.code,
      ),
    )
    .toBe('unauthenticated');
});
