import { chmodSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import postgres from 'postgres';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Database } from '../../src/db/database.js';
import { verifyIsolation } from '../../src/db/isolation.js';
import { type Owned, own } from '../support/owned.js';
import { freePort } from '../support/ports.js';
import { freshDatabase } from '../support/postgres.js';
import { event, logOf, opened, readAll } from './opened.js';

const pgbouncer = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin']
  .map((folder) => join(folder, 'pgbouncer'))
  .find(existsSync);

describe.skipIf(!pgbouncer)(
  `behind PgBouncer in transaction mode${pgbouncer ? '' : ' (pgbouncer is not installed)'}`,
  () => {
    let fresh: Awaited<ReturnType<typeof freshDatabase>>;
    let scratch: string;
    let bouncer: Owned;
    let database: Database;

    beforeAll(async () => {
      fresh = await freshDatabase();
      const direct = new URL(fresh.url);
      const port = await freePort();
      scratch = mkdtempSync(join(tmpdir(), 'tutti-pgbouncer-'));
      chmodSync(scratch, 0o755);
      const password = direct.password ? ` password=${decodeURIComponent(direct.password)}` : '';
      writeFileSync(join(scratch, 'users.txt'), `"${decodeURIComponent(direct.username)}" ""\n`, { mode: 0o644 });
      writeFileSync(
        join(scratch, 'pgbouncer.ini'),
        `[databases]
* = host=${direct.hostname} port=${direct.port || 5432} user=${decodeURIComponent(direct.username)}${password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = any
auth_file = ${join(scratch, 'users.txt')}
pool_mode = transaction
default_pool_size = 3
`,
        { mode: 0o644 },
      );
      // PgBouncer refuses to run as root.
      const user = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : undefined;
      bouncer = own(pgbouncer ?? '', [join(scratch, 'pgbouncer.ini')], { user, scratch });
      const pooled = new URL(fresh.url);
      pooled.host = `127.0.0.1:${port}`;
      for (let i = 0; ; i++) {
        const sql = postgres(pooled.href, { max: 1, connect_timeout: 2 });
        const up = await sql.unsafe('select 1').then(
          () => true,
          () => false,
        );
        await sql.end({ timeout: 1 });
        if (up) break;
        if (i === 100 || !bouncer.running()) expect.fail(`PgBouncer does not answer: ${bouncer.output()}`);
        await sleep(50);
      }
      database = await opened(pooled.href);
    });
    afterAll(async () => {
      await database?.close();
      await bouncer?.end();
      if (scratch) rmSync(scratch, { recursive: true, force: true });
      await fresh?.drop();
    });

    test('[ISO1] roles and tenants stay within their transactions while many share few servers', async () => {
      await verifyIsolation(database);
      const log = logOf(database);
      await Promise.all(['a', 'b', 'c'].map((tenant) => log.append(event(tenant, 'room', 'm', tenant))));
      const tenants = Array.from({ length: 120 }, (_, i) => ['a', 'b', 'c'][i % 3] as string);
      const seen = await Promise.all(
        tenants.map((tenant) =>
          database.withTenants([tenant], async (tx) => {
            const rows = await tx<{ data: string; role: string }[]>`
            select data::text as data, current_user as role from tutti.events where mid = ${'m'}`;
            return rows.map(({ data, role }) => [data, role]);
          }),
        ),
      );
      expect(seen).toEqual(tenants.map((tenant) => [[`"${tenant}"`, 'tutti_app']]));
    });

    test('[LOG2] [LOG3] the log works as without it', async () => {
      const log = logOf(database, { lanes: 6 });
      const acks = await Promise.all(
        Array.from({ length: 600 }, (_, i) => log.append(event('a', `room-${i % 5}`, `m${i}`, i))),
      );
      expect(acks.map(({ seq }) => seq)).toEqual(acks.map((_, i) => Math.floor(i / 5) + 1));
      expect(await log.append(event('a', 'room-0', 'm0'))).toMatchObject({ seq: 1, duplicate: true });
      expect(await readAll(log, 'a', 'room-3')).toHaveLength(120);
    });

    test('[EPOCH1] [FAIL1] what is behind it is asked by every transaction: another log, an old primary', async () => {
      const log = logOf(database, { timeoutMs: 2000 });
      const before = await log.append(event('a', 'moved', 'before'));
      const identity = await database.asOwner(5000, async (sql) => {
        const [row] = await sql<{ identity: string }[]>`
          update tutti.cluster set identity = '1/1/1' returning tutti.identity() as identity`;
        return row?.identity ?? '';
      });
      const [after, page] = await Promise.all([
        log.append(event('a', 'moved', 'after')),
        log.read('a', 'moved', { limit: 10, order: 'asc' }),
      ]);
      expect(after.epoch).not.toBe(before.epoch);
      expect(page?.epoch).toBe(after.epoch);

      const [system] = identity.split('/');
      database.cluster.saw(`${system}/1000`);
      const [read, write] = await Promise.allSettled([
        log.read('a', 'moved', { limit: 10, order: 'asc' }),
        log.append(event('a', 'moved', 'refused')),
      ]);
      for (const refused of [read, write]) {
        expect(refused).toMatchObject({ status: 'rejected', reason: { code: 'log_unavailable' } });
      }
    });
  },
);
