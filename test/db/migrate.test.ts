import { randomBytes } from 'node:crypto';
import postgres from 'postgres';
import { expect, test } from 'vitest';
import { openDatabase } from '../../src/db/database.js';
import { migrate } from '../../src/db/migrate.js';
import { freshDatabase } from '../support/postgres.js';

test('several gateways that start at once migrate once, also in two databases of one cluster', async () => {
  const appRole = `app_${randomBytes(4).toString('hex')}`;
  const fresh = await Promise.all([freshDatabase(), freshDatabase()]);
  const databases = await Promise.all(
    fresh.flatMap(({ url }) => [1, 2, 3, 4].map(() => openDatabase({ url, poolSize: 2, appRole }))),
  );
  try {
    const ran = await Promise.all(databases.map(migrate));
    for (const of of [ran.slice(0, 4), ran.slice(4)]) {
      const [first, ...others] = of.sort((a, b) => b.length - a.length);
      expect(first?.[0]).toBe('0000_tables.sql');
      for (const other of others) expect(other).toEqual([]);
    }
    expect(await migrate(databases[0] ?? expect.fail())).toEqual([]);
  } finally {
    await Promise.all(databases.map((database) => database.close()));
    for (const one of fresh) await one.drop();
    const sql = postgres((fresh[0] ?? expect.fail()).url.replace(/[^/]*$/, 'postgres'), { max: 1 });
    await sql.unsafe(`drop role ${appRole}`);
    await sql.end();
  }
});

test('a migration that fails leaves nothing behind', async () => {
  const fresh = await freshDatabase();
  const database = await openDatabase({ url: fresh.url, poolSize: 2, appRole: 'tutti_app' });
  try {
    await database.asOwner(5000, (sql) =>
      sql.unsafe('create schema tutti; create table tutti.runs (id int)').execute(),
    );
    await expect(migrate(database)).rejects.toThrow();
    const left = await database.asOwner(
      5000,
      (sql) => sql`select relname from pg_class where relnamespace = 'tutti'::regnamespace`,
    );
    expect(left.map(({ relname }) => relname)).toEqual(['runs']);
  } finally {
    await database.close();
    await fresh.drop();
  }
});

test('a server that is not there is `log_unavailable`', async () => {
  await expect(
    openDatabase({ url: 'postgres://postgres@127.0.0.1:1/postgres', poolSize: 2, appRole: 'tutti_app' }),
  ).rejects.toMatchObject({ code: 'log_unavailable' });
});
