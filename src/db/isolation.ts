import type { Database } from './database.js';
import { asDatabaseRefusal, codeOf } from './refusal.js';
import { DatabaseSetupError, remedy } from './roles.js';

const CHECK_TIMEOUT_MS = 15_000;

/**
 * Proves from the catalog, and by becoming the application's role, that Postgres keeps the tenants apart: the role
 * has no powers over row level security, owns no table, and every table with a tenant has a policy it cannot pass.
 * In production a gateway that cannot have this must not start.
 * @throws DatabaseSetupError that lists what is wrong and what an administrator has to run; TuttiError `log_unavailable`.
 */
export async function verifyIsolation(database: Database): Promise<void> {
  const { appRole } = database;
  const { problems, advice } = await database
    .asOwner(CHECK_TIMEOUT_MS, async (sql) => {
      const found = await sql<{ problem: string }[]>`
        with app as (select * from pg_roles where rolname = ${appRole}),
        tables as (
          select c.*, exists (
            select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
          ) as tenanted
          from pg_class c where c.relnamespace = to_regnamespace('tutti') and c.relkind in ('r', 'p')
        )
        select format('the role %I does not exist', ${appRole}::text) as problem where not exists (select from app)
        union all select format('the role %I is a superuser', rolname) from app where rolsuper
        union all select format('the role %I has BYPASSRLS', rolname) from app where rolbypassrls
        union all select format('the role %I may make roles', rolname) from app where rolcreaterole
        union all select 'the schema tutti has no tables' where not exists (select from tables where tenanted)
        union all select format('the role %I has the rights of the owner of %s', app.rolname, tables.oid::regclass)
          from app, tables where pg_has_role(app.oid, tables.relowner, 'MEMBER') and not app.rolsuper
        union all select format('the role %I may create in the schema tutti', app.rolname)
          from app where has_schema_privilege(app.oid, 'tutti', 'CREATE') and not app.rolsuper
        union all select format('%s is without FORCE ROW LEVEL SECURITY', oid::regclass)
          from tables where tenanted and not (relrowsecurity and relforcerowsecurity)
        union all select format('%s has no policy on tutti.tenants', t.oid::regclass)
          from tables t where tenanted and not exists (select from pg_policy p where p.polrelid = t.oid)
        union all select format('the policy %I of %s lets other tenants through', p.polname, p.polrelid::regclass)
          from pg_policy p join tables t on t.oid = p.polrelid
          where p.polpermissive and coalesce(pg_get_expr(p.polqual, p.polrelid), '') not like '%tutti.tenants%'
        union all select format('%s is not owned by the role %I', p.oid::regprocedure, ${appRole}::text)
          from pg_proc p where p.pronamespace = to_regnamespace('tutti') and p.prosecdef
            and not exists (select from app where app.oid = p.proowner)
        union all select format('the role of DATABASE_URL may not execute %s', p.oid::regprocedure)
          from pg_proc p where p.pronamespace = to_regnamespace('tutti') and p.prosecdef
            and not has_function_privilege(p.oid, 'EXECUTE')`;
      return { problems: found.map((row) => row.problem), advice: await remedy(sql, appRole) };
    })
    .catch((error) => {
      throw asDatabaseRefusal(error);
    });
  const refusal = await becomes(database);
  if (refusal) problems.push(refusal);
  if (problems.length === 0) return;
  throw new DatabaseSetupError(`Postgres does not keep tenants apart: ${problems.join('; ')}.\n${advice}`);
}

/** Why transactions cannot work as the application's role, if they cannot. */
async function becomes(database: Database): Promise<string | undefined> {
  try {
    return await database.withTenants([], async (tx) => {
      const [row] = await tx<{ role: string; seen: boolean }[]>`
        select current_user as role, exists (select from tutti.tenants) as seen`;
      if (row?.role !== database.appRole) return `transactions work as "${row?.role}", not as "${database.appRole}"`;
      return row.seen ? 'a transaction without tenants sees tenants' : undefined;
    });
  } catch (error) {
    const refusal = asDatabaseRefusal(error);
    if (refusal.code === 'log_unavailable') throw refusal;
    return `the role of DATABASE_URL cannot work as "${database.appRole}" (SQLSTATE ${codeOf(refusal.cause) ?? 'unknown'})`;
  }
}
