import { randomBytes } from 'node:crypto';
import postgres from 'postgres';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Database, openDatabase } from '../../src/db/database.js';
import { verifyIsolation } from '../../src/db/isolation.js';
import { migrate } from '../../src/db/migrate.js';
import { freshDatabase } from '../support/postgres.js';
import { event, logOf, opened } from './opened.js';

let fresh: Awaited<ReturnType<typeof freshDatabase>>;
let database: Database;
beforeAll(async () => {
  fresh = await freshDatabase();
  database = await opened(fresh.url);
  const log = logOf(database);
  for (const tenant of ['a', 'b']) await log.append(event(tenant, 'room', 'm', `of ${tenant}`));
});
afterAll(async () => {
  await database?.close();
  await fresh?.drop();
});

describe('row level security', () => {
  test('[ISO2] the catalog: every table with a tenant has forced policies, the role owns nothing', async () => {
    await verifyIsolation(database);
    const tables = await database.asOwner(
      5000,
      (sql) => sql<{ name: string; forced: boolean; policies: number }[]>`
        select c.relname as name, c.relrowsecurity and c.relforcerowsecurity as forced,
          (select count(*)::int from pg_policy where polrelid = c.oid) as policies
        from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'
        where c.relnamespace = 'tutti'::regnamespace and c.relkind = 'r' order by 1`,
    );
    expect(tables.map(({ name }) => name)).toEqual(expect.arrayContaining(['api_keys', 'events', 'rooms', 'tenants']));
    for (const table of tables) expect(table).toMatchObject({ forced: true, policies: 1 });
  });

  test('[ISO1] a transaction sees and writes its own tenants only', async () => {
    const texts = (tenants: string[] | '*') =>
      database.withTenants(tenants, async (tx) =>
        (await tx<{ data: string }[]>`select data::text as data from tutti.events order by tenant_id`).map(
          ({ data }) => data,
        ),
      );
    expect(await texts(['a'])).toEqual(['"of a"']);
    expect(await texts(['a', 'b'])).toEqual(['"of a"', '"of b"']);
    expect(await texts('*')).toEqual(['"of a"', '"of b"']);
    expect(await texts(['c'])).toEqual([]);
    expect(await texts([])).toEqual([]);
    const changed = await database.withTenants(
      ['a'],
      (tx) => tx`update tutti.rooms set head = 99 where tenant_id = 'b'`,
    );
    expect(changed.count).toBe(0);
    const gone = await database.withTenants(['a'], (tx) => tx`delete from tutti.rooms where tenant_id = 'b'`);
    expect(gone.count).toBe(0);
    const stolen = database.withTenants(
      ['a'],
      (tx) => tx`insert into tutti.rooms (tenant_id, name, epoch) values ('b', 'planted', 'e')`,
    );
    await expect(stolen).rejects.toMatchObject({ cause: { code: '42501' } });
    const moved = database.withTenants(['a'], (tx) => tx`update tutti.rooms set tenant_id = 'b' where name = 'room'`);
    await expect(moved).rejects.toMatchObject({ cause: { code: '42501' } });
  });

  test("[ISO1] the operator's rows are seen on the operator's paths only", async () => {
    await database.withTenants(
      '*',
      (tx) =>
        tx`insert into tutti.api_keys (id, tenant_id, scopes, hash, name) values ('op', null, '{worker}', 'h', 'n')`,
    );
    const seen = (tenants: string[] | '*') => database.withTenants(tenants, (tx) => tx`select from tutti.api_keys`);
    expect(await seen('*')).toHaveLength(1);
    expect(await seen(['a', 'b'])).toHaveLength(0);
  });

  test('[ISO2] the role cannot change the log, the schema or its own rights', async () => {
    for (const attempt of [
      `update tutti.events set data = '1'`,
      `delete from tutti.events`,
      `truncate tutti.events`,
      `alter table tutti.events disable row level security`,
      `create table tutti.mine (id int)`,
      `drop policy tenants on tutti.events`,
      `insert into tutti.migrations (name) values ('x')`,
    ]) {
      const refused = database.withTenants(['a'], (tx) => tx.unsafe(attempt).execute());
      await expect(refused, attempt).rejects.toMatchObject({ cause: { code: '42501' } });
    }
  });

  test('[ISO2] role and tenants end with the transaction, and append_events gives the tenants back', async () => {
    const scope = await database.withTenants(['a'], async (tx) => {
      await tx`select * from tutti.append_events('{b}', '{room}', '{n}', '{t}', '{1}', ${'{"{\\"kind\\":\\"user\\",\\"id\\":\\"u\\"}"}'}::text[])`;
      const [row] = await tx<{ tenants: string }[]>`select current_setting('tutti.tenants') as tenants`;
      return row?.tenants;
    });
    expect(scope).toBe('a');
    const line = database.dedicated();
    const rows = await line.run(5000, async (sql) => {
      await sql`select * from tutti.append_events('{b}', '{room}', '{o}', '{t}', '{1}', '{"{}"}')`;
      return sql`select current_setting('tutti.tenants', true) as tenants, current_user = session_user as same`;
    });
    expect(rows[0]).toEqual({ tenants: '', same: true });
  });

  test('[ISO2] a table without its policy, and a role with too many rights, are found', async () => {
    const damage = async (break_: string, mend: string, finding: RegExp) => {
      await database.asOwner(5000, (sql) => sql.unsafe(break_).execute());
      try {
        await expect(verifyIsolation(database)).rejects.toThrow(finding);
      } finally {
        await database.asOwner(5000, (sql) => sql.unsafe(mend).execute());
      }
    };
    await damage(
      'alter table tutti.events no force row level security',
      'alter table tutti.events force row level security',
      /tutti\.events is without FORCE/,
    );
    await damage('create table tutti.extra (tenant_id text)', 'drop table tutti.extra', /tutti\.extra has no policy/);
    await damage(
      'create policy open on tutti.rooms using (true)',
      'drop policy open on tutti.rooms',
      /policy open of tutti\.rooms lets other tenants through/,
    );
    await damage(
      'grant create on schema tutti to tutti_app',
      'revoke create on schema tutti from tutti_app',
      /may create/,
    );
    await verifyIsolation(database);
  });
});

describe('the role of DATABASE_URL', () => {
  const made: string[] = [];
  const administer = async (statement: string) => {
    const sql = postgres(fresh.url, { max: 1, onnotice: () => {} });
    try {
      return await sql.unsafe(statement);
    } finally {
      await sql.end();
    }
  };
  const plainRole = async (rights: string) => {
    const name = `plain_${randomBytes(4).toString('hex')}`;
    await administer(`create role ${name} login password 'secret' ${rights}`);
    made.push(name);
    return name;
  };
  const as = (url: string, role: string) => {
    const login = new URL(url);
    login.username = role;
    login.password = 'secret';
    return login.href;
  };
  afterAll(async () => {
    for (const name of made.reverse()) await administer(`drop role if exists ${name}`);
  });

  test('[ISO2] needs no superuser: CREATEROLE and a database of its own do', async () => {
    const role = await plainRole('createrole');
    const app = `${role}_app`;
    made.push(app);
    const own = await freshDatabase();
    await administer(`alter database ${new URL(own.url).pathname.slice(1)} owner to ${role}`);
    const plain = await openDatabase({ url: as(own.url, role), poolSize: 2, appRole: app });
    try {
      expect(await migrate(plain)).not.toEqual([]);
      await verifyIsolation(plain);
      await plain.withTenants('*', (tx) => tx`insert into tutti.tenants (tenant_id, name) values ('a', 'A')`);
      const log = logOf(plain);
      expect(await log.append(event('a', 'room', 'm'))).toMatchObject({ seq: 1 });
      expect(await log.erase('a', 'room')).toBe(true);
    } finally {
      await plain.close();
      await own.drop();
    }
  });

  test('[ISO2] without rights it is refused with what an administrator has to run, and that is enough', async () => {
    const role = await plainRole('');
    const app = `${role}_app`;
    made.push(app);
    const own = await freshDatabase();
    const plain = await openDatabase({ url: as(own.url, role), poolSize: 2, appRole: app });
    try {
      const refusal = await migrate(plain).then(
        () => expect.fail('not refused'),
        (error: Error) => error,
      );
      expect(refusal).toMatchObject({ name: 'DatabaseSetupError' });
      const statements = refusal.message.match(/^ {2}.*;$/gm) ?? [];
      expect(statements).toHaveLength(3);
      for (const statement of statements) await administer(statement);
      await migrate(plain);
      await verifyIsolation(plain);
    } finally {
      await plain.close();
      await own.drop();
    }
  });
});
