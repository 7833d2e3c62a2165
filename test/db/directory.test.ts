import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Directory, Issuer } from '../../src/core/directory.js';
import type { Database } from '../../src/db/database.js';
import { createDirectory } from '../../src/db/directory.js';
import { freshDatabase } from '../support/postgres.js';
import { opened } from './opened.js';

let fresh: Awaited<ReturnType<typeof freshDatabase>>;
let database: Database;
let directory: Directory;
beforeAll(async () => {
  fresh = await freshDatabase();
  database = await opened(fresh.url);
  directory = createDirectory(database);
});
afterAll(async () => {
  await database?.close();
  await fresh?.drop();
});

/** Whether an act moved the revision. */
const moves = async (act: () => Promise<unknown>) => {
  const before = await directory.revision();
  await act();
  return (await directory.revision()) > before;
};

test('tenants are put and read, and each change moves the revision', async () => {
  expect(await moves(() => directory.putTenant({ id: 'acme', name: 'Acme', status: 'active' }))).toBe(true);
  expect(await moves(() => directory.putTenant({ id: 'acme', name: 'Acme', status: 'suspended' }))).toBe(true);
  expect(await moves(() => directory.tenants())).toBe(false);
  expect(await directory.tenant('acme')).toEqual({
    id: 'acme',
    name: 'Acme',
    status: 'suspended',
    createdAt: expect.any(Number),
  });
  expect((await directory.tenants()).map(({ id }) => id)).toEqual(['a', 'acme', 'b', 'c']);
  expect(await directory.tenant('nobody')).toBeUndefined();
});

test('issuers come back as they were put; one of the same iss is replaced', async () => {
  const issuer: Omit<Issuer, 'createdAt'> = {
    id: 'i1',
    tenant: 'a',
    iss: 'https://a.example/',
    audience: 'tutti',
    algorithms: ['RS256', 'ES256'],
    typ: null,
    keys: { kind: 'jwk', jwk: { kty: 'oct', k: 'quote " and \\ back' } },
  };
  expect(await moves(() => directory.putIssuer(issuer))).toBe(true);
  expect(await directory.issuer(issuer.iss)).toEqual({ ...issuer, createdAt: expect.any(Number) });
  const changed = { ...issuer, tenant: null, typ: 'at+jwt', keys: { kind: 'hs256', secret: 's' } } as const;
  await directory.putIssuer(changed);
  expect(await directory.issuer(issuer.iss)).toMatchObject(changed);
  expect(await directory.issuers('a')).toEqual([]);
  expect(await directory.issuers()).toHaveLength(1);
  expect(await moves(() => directory.deleteIssuer(issuer.iss))).toBe(true);
  expect(await directory.deleteIssuer(issuer.iss)).toBe(false);
});

test('keys come back as they were put, and a revoked one says since when', async () => {
  const key = { id: 'k1', tenant: 'a', scopes: ['server', 'worker'] as ('server' | 'worker')[], hash: 'ab', name: 'n' };
  expect(await moves(() => directory.putKey(key))).toBe(true);
  expect(await directory.key('k1')).toEqual({ ...key, createdAt: expect.any(Number), revokedAt: null });
  await directory.putKey({ ...key, id: 'k2', tenant: null });
  expect((await directory.keys('a')).map(({ id }) => id)).toEqual(['k1']);
  expect((await directory.keys()).map(({ id }) => id)).toEqual(['k1', 'k2']);
  await directory.revoke({ tenant: 'b', kind: 'key', subject: 'k1' });
  expect((await directory.key('k1'))?.revokedAt).toBeNull();
  const { at } = await directory.revoke({ tenant: 'a', kind: 'key', subject: 'k1' });
  expect((await directory.key('k1'))?.revokedAt).toBeGreaterThanOrEqual(at);
});

test('revocations are read from a time on, oldest first, in the order they were committed', async () => {
  const first = await directory.revoke({ tenant: 'a', kind: 'user', subject: 'u0' });
  const more = await Promise.all(
    Array.from({ length: 10 }, (_, i) => directory.revoke({ tenant: 'a', kind: 'user', subject: `u${i + 1}` })),
  );
  const read = await directory.revocations(first.at);
  const known = new Set([first.id, ...more.map(({ id }) => id)]);
  expect(read.filter(({ id }) => known.has(id))).toHaveLength(11);
  expect(read.map(({ at }) => at)).toEqual(read.map(({ at }) => at).sort((x, y) => x - y));
  expect(await directory.revocations(Date.now() + 60_000)).toEqual([]);
});
