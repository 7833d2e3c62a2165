import { is } from 'drizzle-orm';
import { getTableConfig, PgTable } from 'drizzle-orm/pg-core';
import postgres from 'postgres';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openDatabase } from '../../src/db/database.js';
import { migrate } from '../../src/db/migrate.js';
import * as schema from '../../src/db/schema.js';
import { freshDatabase } from '../support/postgres.js';

let sql: postgres.Sql;
let drop: () => Promise<void>;

beforeAll(async () => {
  const fresh = await freshDatabase();
  const database = await openDatabase({ url: fresh.url, poolSize: 2, appRole: 'tutti_app' });
  await migrate(database);
  await database.close();
  sql = postgres(fresh.url, { max: 1, onnotice: () => {} });
  drop = fresh.drop;
});

afterAll(async () => {
  await sql.end();
  await drop();
});

const tables = Object.values(schema).flatMap((value) => (is(value, PgTable) ? getTableConfig(value) : []));

test('the Drizzle schema and a migrated database have the same tables and columns', async () => {
  const described = tables.flatMap(({ name, columns }) =>
    columns.map((column) => `${name}.${column.name} ${column.getSQLType()}${column.notNull ? ' not null' : ''}`),
  );
  const found = await sql<{ column: string }[]>`
    select format('%s.%s %s%s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
      case when a.attnotnull then ' not null' else '' end) as column
    from pg_attribute a join pg_class c on c.oid = a.attrelid
    where c.relnamespace = 'tutti'::regnamespace and c.relkind = 'r' and a.attnum > 0 and not a.attisdropped
      and c.relname <> 'migrations'`;
  expect(found.map(({ column }) => column).sort()).toEqual(described.sort());
});

test('the Drizzle schema and a migrated database have the same indexes', async () => {
  const described = tables.flatMap(({ indexes }) => indexes.map(({ config }) => config.name));
  const found = await sql<{ name: string }[]>`
    select i.relname as name from pg_index x join pg_class i on i.oid = x.indexrelid join pg_class t on t.oid = x.indrelid
    where t.relnamespace = 'tutti'::regnamespace and not x.indisprimary`;
  expect(found.map(({ name }) => name).sort()).toEqual(described.sort());
});
