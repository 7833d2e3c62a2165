import { generateKeyPairSync, type KeyObject } from 'node:crypto';
import { createServer } from 'node:http';
import { SignJWT } from 'jose';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { hs256, setUp } from './setup.js';

const pair = (kid: string) => ({ kid, ...generateKeyPairSync('ec', { namedCurve: 'P-256' }) });
const first = pair('k1');
const stranger = pair('k2');
let requests = 0;
let status = 200;
let served = [first];
let padding = '';
const server = createServer((_, response) => {
  requests += 1;
  const keys = served.map(({ kid, publicKey }) => ({ ...publicKey.export({ format: 'jwk' }), kid, alg: 'ES256' }));
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify({ keys, padding }));
});

beforeEach(async () => {
  requests = 0;
  status = 200;
  served = [first];
  padding = '';
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
});
afterEach(async () => {
  server.closeAllConnections();
  await new Promise((closed) => server.close(closed));
});

async function withJwks() {
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  const made = await setUp();
  const url = `http://127.0.0.1:${address.port}/keys`;
  await made.directory.putIssuer({ ...hs256('acme', 'oidc'), algorithms: ['ES256'], keys: { kind: 'jwks', url } });
  return made;
}

function token({ kid, privateKey }: { kid: string; privateKey: KeyObject }): Promise<string> {
  const iat = Math.floor(Date.now() / 1000);
  return new SignJWT({ iss: 'oidc', aud: 'tutti', sub: 'ann', iat, exp: iat + 60, cap: {} })
    .setProtectedHeader({ alg: 'ES256', kid })
    .sign(privateKey);
}

test('a key set is fetched once, also over changes elsewhere in the directory', async () => {
  const { auth, directory } = await withJwks();
  const good = await token(first);
  await Promise.all(Array.from({ length: 20 }, () => auth.token(good)));
  await directory.putTenant({ id: 'new', name: '', status: 'active' });
  await new Promise((wait) => setTimeout(wait, 150));
  await auth.token(good);
  expect(requests).toBe(1);
});

test('a flood of unknown kids does not reach the server', async () => {
  const { auth } = await withJwks();
  await auth.token(await token(first));
  for (let i = 0; i < 200; i++) {
    const bad = await token({ ...stranger, kid: `unknown-${i}` });
    await expect(auth.token(bad)).rejects.toMatchObject({ code: 'unauthenticated' });
  }
  expect(requests).toBe(1);
});

test('[LIM1] a key set that is too large is not read', async () => {
  const { auth } = await withJwks();
  padding = 'x'.repeat(2 * 1024 * 1024);
  const good = await token(first);
  await expect(auth.token(good)).rejects.toMatchObject({ code: 'log_unavailable', retryAfterMs: expect.any(Number) });
  padding = '';
  await expect
    .poll(
      () =>
        auth.token(good).then(
          ({ id }) => id,
          () => '',
        ),
      { timeout: 10_000 },
    )
    .toBe('ann');
});

test('[ERR1] a server that fails denies, for now, and is not hammered', async () => {
  const { auth } = await withJwks();
  status = 500;
  const good = await token(first);
  for (let i = 0; i < 50; i++) {
    await expect(auth.token(good)).rejects.toMatchObject({ code: 'log_unavailable' });
  }
  expect(requests).toBe(1);
  status = 200;
  await expect
    .poll(
      () =>
        auth.token(good).then(
          ({ id }) => id,
          () => '',
        ),
      { timeout: 10_000 },
    )
    .toBe('ann');
});
