import { readdir, readFile } from 'node:fs/promises';
import type { Database, Sql, Tx } from './database.js';
import { asDatabaseRefusal, codeOf } from './refusal.js';
import { DatabaseSetupError, ensureRole, remedy } from './roles.js';

/** Any number, as long as nobody else takes advisory locks with it in this database. */
const LOCK = 0x7475_7474;
const TIMEOUT_MS = 300_000;

/**
 * Brings the database to the newest schema: makes the application's role, then runs the migrations that have not
 * run, all of them in one transaction. Several gateways may do this at once; one works, the others wait. Migrations
 * only go forward; ones of a newer release, left by another gateway, do not matter.
 * @returns names of the migrations that ran.
 * @throws DatabaseSetupError where rights, version or encoding do not do; TuttiError `log_unavailable`.
 */
export async function migrate(database: Database): Promise<string[]> {
  return database.asOwner(TIMEOUT_MS, async (sql) => {
    try {
      await checkServer(sql);
      await ensureRole(sql, database.appRole);
      return await sql.begin('isolation level read committed', (tx) => apply(tx, database.appRole));
    } catch (error) {
      if (error instanceof DatabaseSetupError) throw error;
      if (codeOf(error) === '42501') {
        const reason = error instanceof Error ? error.message : 'permission denied';
        throw new DatabaseSetupError(
          `The role of DATABASE_URL may not run the migrations: ${reason}.\n${await remedy(sql, database.appRole)}`,
          { cause: error },
        );
      }
      throw asDatabaseRefusal(error);
    }
  });
}

async function checkServer(sql: Sql): Promise<void> {
  const [row] = await sql<{ version: number; encoding: string; name: string }[]>`
    select current_setting('server_version_num')::int as version, current_setting('server_encoding') as encoding,
      current_setting('server_version') as name`;
  if ((row?.version ?? 0) < 140000)
    throw new DatabaseSetupError(`Postgres 14 or newer is needed; this is ${row?.name}.`);
  if (row?.encoding !== 'UTF8') {
    throw new DatabaseSetupError(`The database must have the encoding UTF8; this one has ${row?.encoding}.`);
  }
}

async function apply(tx: Tx, appRole: string): Promise<string[]> {
  await tx`select pg_advisory_xact_lock(${LOCK}), set_config('tutti.app_role', ${appRole}, true)`;
  const [found] = await tx<{ schema: boolean; table: boolean }[]>`
    select to_regnamespace('tutti') is not null as schema, to_regclass('tutti.migrations') is not null as table`;
  // IF NOT EXISTS asks for the right to create even where there is nothing to create.
  if (!found?.schema) await tx.unsafe('create schema tutti');
  if (!found?.table) {
    await tx.unsafe('create table tutti.migrations (name text primary key, at timestamptz not null default now())');
  }
  const done = new Set((await tx<{ name: string }[]>`select name from tutti.migrations`).map((row) => row.name));
  const due = (await migrations()).filter((migration) => !done.has(migration.name));
  for (const { name, text } of due) {
    await tx.unsafe(text);
    await tx`insert into tutti.migrations (name) values (${name})`;
  }
  return due.map((migration) => migration.name);
}

/** Beside this file, or in the sources where a build left only JavaScript here. */
const FOLDERS = [new URL('./migrations/', import.meta.url), new URL('../../src/db/migrations/', import.meta.url)];

async function migrations(): Promise<{ name: string; text: string }[]> {
  for (const folder of FOLDERS) {
    const files = await readdir(folder).catch(() => []);
    const names = files.filter((file) => file.endsWith('.sql')).sort();
    if (names.length === 0) continue;
    return Promise.all(names.map(async (name) => ({ name, text: await readFile(new URL(name, folder), 'utf8') })));
  }
  throw new Error(`No migrations in ${FOLDERS[0]?.pathname}`);
}
