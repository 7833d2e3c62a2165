import { setTimeout as sleep } from 'node:timers/promises';
import type { Sql } from './database.js';
import { codeOf } from './refusal.js';

/** The database does not give what Tutti needs. The message says what an administrator has to run. */
export class DatabaseSetupError extends Error {
  override readonly name = 'DatabaseSetupError';
}

export const quoteName = (name: string): string => `"${name.replaceAll('"', '""')}"`;

/** What a superuser runs once where the role of the URL may not do it by itself. */
export async function remedy(sql: Sql, appRole: string): Promise<string> {
  const [row] = await sql<{ login: string; db: string; known: boolean }[]>`
    select current_user as login, current_database() as db,
      exists (select from pg_roles where rolname = ${appRole}) as known`;
  const app = quoteName(appRole);
  const login = quoteName(row?.login ?? '');
  return [
    'An administrator of the database has to run once:',
    row?.known
      ? `  ALTER ROLE ${app} NOLOGIN NOSUPERUSER NOBYPASSRLS;`
      : `  CREATE ROLE ${app} NOLOGIN NOSUPERUSER NOBYPASSRLS;`,
    `  GRANT ${app} TO ${login};`,
    `  GRANT CREATE ON DATABASE ${quoteName(row?.db ?? '')} TO ${login};`,
  ].join('\n');
}

/** Two databases of one cluster share their roles, and an advisory lock reaches one database only. */
const RACES = new Set(['XX000', '23505', '42710', '40001', '40P01']);

/**
 * Makes the role the application works as, and lets the role of the URL become it. Safe while others do the same.
 * @throws DatabaseSetupError where the role of the URL may not.
 */
export async function ensureRole(sql: Sql, appRole: string): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await makeRole(sql, appRole);
    } catch (error) {
      const code = codeOf(error);
      if (code === '42501') {
        throw new DatabaseSetupError(
          `The role of DATABASE_URL may not make or use the role "${appRole}".\n${await remedy(sql, appRole)}`,
          { cause: error },
        );
      }
      if (attempt === 20 || code === undefined || !RACES.has(code)) throw error;
      await sleep(20 + Math.random() * 80);
    }
  }
}

async function makeRole(sql: Sql, appRole: string): Promise<void> {
  const name = quoteName(appRole);
  const known = await sql`select from pg_roles where rolname = ${appRole}`;
  if (known.length === 0) await sql.unsafe(`create role ${name} nologin`);
  if (!(await canBecome(sql, appRole))) await sql.unsafe(`grant ${name} to current_user`);
}

/** Whether the role of the URL can work as the app role and use what it owns. */
async function canBecome(sql: Sql, appRole: string): Promise<boolean> {
  const [row] = await sql<{ version: number }[]>`select current_setting('server_version_num')::int as version`;
  // From 16 on a membership says by itself whether it allows SET ROLE.
  const right = (row?.version ?? 0) >= 160000 ? 'SET' : 'MEMBER';
  const [can] = await sql<{ can: boolean }[]>`
    select pg_has_role(current_user, ${appRole}::name, ${right}) and pg_has_role(current_user, ${appRole}::name, 'USAGE') as can`;
  return can?.can ?? false;
}
