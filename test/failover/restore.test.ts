import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Position } from '../../src/protocol/primitives.js';
import { inDatabase, storedEvents } from '../e2e/log-table.js';
import { sleep } from '../e2e/run-stage.js';
import { connect, type TestClient } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { metric } from '../support/metric.js';
import { type Server, type Servers, startServers, wholePostgres } from '../support/postgres-pair.js';
import { devToken } from '../support/tokens.js';
import { tutti } from './cli.js';

const bin = wholePostgres();
const ROOM = 'hall';

describe.skipIf(!bin)('restored from a backup (needs an installed Postgres)', () => {
  let servers: Servers;
  let first: Server;
  let token: string;
  const gateways: GatewayProcess[] = [];
  /** What the log was when the time was noted, and where a reader stood before and after it. */
  let noted: { time: string; mids: string[]; early: Position; late: Position };
  let backup: string;
  let archive: string;

  // Promotions are said to lose nothing: a restore must be noticed all the same.
  const serveOver = async ({ url }: Server, env: Record<string, string> = {}) => {
    const gateway = await startGateway({ env: { DATABASE_URL: url, TUTTI_DB_FAILOVER: 'synchronous', ...env } });
    gateways.push(gateway);
    return gateway;
  };
  const publish = (client: TestClient, mid: string) =>
    client.call('event.publish', { room: ROOM, type: 'note', data: { mid }, mid });

  beforeAll(async () => {
    token = await devToken();
    servers = startServers(bin ?? '');
    archive = join(servers.directory, 'archive');
    first = await servers.make('first');
    await first.start();
    await servers.run('archive.sh', [], first, { ARCHIVE: archive });
    await first.stop();
    await first.start();
    const gateway = await serveOver(first);
    const client = await connect({ url: gateway.url, token });
    for (let n = 0; n < 10; n++) await publish(client, `before-${n}`);
    backup = await servers.run('backup.sh', [], first, { BACKUPS: join(servers.directory, 'backups') });
    for (let n = 0; n < 10; n++) await publish(client, `after-${n}`);
    const { position: early } = await publish(client, 'noted');
    const mids = (await storedEvents(first.url, ROOM)).map(({ mid }) => mid);
    const time = await inDatabase(first.url, async (sql) => {
      const [row] = await sql`select clock_timestamp()::text as now, pg_sleep(0.05)`;
      return String(row?.now);
    });
    for (let n = 0; n < 10; n++) await publish(client, `lost-${n}`);
    const { position: late } = await publish(client, 'lost-last');
    noted = { time, mids, early, late };
    client.close();
    await inDatabase(first.url, async (sql) => {
      const [wal] = await sql`select pg_walfile_name(pg_switch_wal()) as name`;
      await eventually('the last WAL is archived', async () => {
        const [archived] = await sql`select from pg_stat_archiver where last_archived_wal >= ${String(wal?.name)}`;
        return archived !== undefined;
      });
    });
    await gateway.stop();
    await first.stop();
  });
  afterAll(async () => {
    await Promise.all(gateways.map((gateway) => gateway.stop()));
    await servers?.destroy();
  });

  /** What every restore must come to: the log of that time, under another epoch, with no position from before. */
  const expectRestored = async (server: Server, gateway: GatewayProcess, mids: string[]) => {
    expect(await metric(gateway.url, 'database_changes_total', '{epochs="advanced"}')).toBe(1);
    const client = await connect({ url: gateway.url, token });
    for (const from of [noted.early, noted.late]) {
      const joined = await client.call('room.join', { room: ROOM, from });
      expect(joined).toMatchObject({ resumed: false, resync: { reason: 'epoch_changed' }, head: mids.length });
    }
    const history = await client.call('event.history', { room: ROOM, after: 0, limit: 500 });
    expect(history.epoch).not.toBe(noted.early.epoch);
    expect(history.events.map(({ mid }) => mid)).toEqual(mids);
    const next = await publish(client, 'next');
    expect(next.position).toEqual({ epoch: history.epoch, seq: mids.length + 1 });
    await client.waitFor('event', ({ mid }) => mid === 'next');
    client.close();
    expect((await storedEvents(server.url, ROOM)).at(-1)).toMatchObject({ mid: 'next', seq: mids.length + 1 });
  };

  const recover = async (server: Server) => {
    await server.start();
    await inDatabase(server.url, (sql) =>
      eventually('recovered', async () => (await sql`select pg_is_in_recovery() as going`)[0]?.going === false),
    );
  };

  // First of all, because the others write timelines of their own into the archive.
  test('[EPOCH1] for practice, to the end of the archive: everything archived is there, and the archive stays as it was', async () => {
    const archived = (await readdir(archive)).sort();
    const drill = await servers.place('drill');
    await servers.run('restore.sh', [backup], drill, { ARCHIVE: archive, DRILL: 'yes' });
    await recover(drill);
    const gateway = await serveOver(drill);
    const whole = (await storedEvents(drill.url, ROOM)).map(({ mid }) => mid);
    expect(whole.slice(0, noted.mids.length)).toEqual(noted.mids);
    expect(whole.slice(noted.mids.length)).toEqual([...Array.from({ length: 10 }, (_, n) => `lost-${n}`), 'lost-last']);
    await expectRestored(drill, gateway, whole);
    const archiving = await inDatabase(drill.url, async (sql) => {
      await sql`select pg_switch_wal()`;
      return (await sql`show archive_mode`)[0]?.archive_mode;
    });
    expect(archiving).toBe('off');
    await gateway.stop();
    await drill.stop();
    expect((await readdir(archive)).sort()).toEqual(archived);
  }, 60_000);

  test('[EPOCH1] a server is lost with its disk, and there is only the archive: what was archived is there, without a gap', async () => {
    const ARCHIVE = join(servers.directory, 'archive-of-lost');
    const lost = await servers.make('lost');
    await lost.start();
    await servers.run('archive.sh', [], lost, { ARCHIVE, ARCHIVE_TIMEOUT: '3' });
    await lost.stop();
    await lost.start();
    const gateway = await serveOver(lost);
    const client = await connect({ url: gateway.url, token });
    const from = await servers.run('backup.sh', [], lost, { BACKUPS: join(servers.directory, 'backups-of-lost') });
    const archived = () =>
      inDatabase(lost.url, async (sql) =>
        Number((await sql`select archived_count from pg_stat_archiver`)[0]?.archived_count),
      );
    const acked: { mid: string; at: number }[] = [];
    const say = async (mid: string) => {
      acked.push({ mid, at: (await publish(client, mid)).at });
      await sleep(20);
    };
    const begun = await archived();
    while ((await archived()) < begun + 2) await say(`m-${acked.length}`);
    // Most of what the setting allows to be lost, up to an acknowledgement right before the end.
    for (const since = Date.now(); Date.now() - since < 2000; ) await say(`m-${acked.length}`);
    acked.push({ mid: 'last', at: (await publish(client, 'last')).at });
    await lost.kill9();
    await rm(lost.data, { recursive: true });
    client.close();
    await gateway.stop();

    const found = await servers.place('found');
    await servers.run('restore.sh', [from], found, { ARCHIVE });
    await recover(found);
    const mids = (await storedEvents(found.url, ROOM)).map(({ mid }) => mid);
    expect(mids.length).toBeGreaterThan(0);
    expect(mids).toEqual(acked.slice(0, mids.length).map(({ mid }) => mid));
    const last = acked[mids.length - 1]?.at ?? 0;
    console.log(
      `archive alone, archive_timeout 3 s: ${acked.length - mids.length} of ${acked.length} acknowledged events lost, ` +
        `those of the last ${(acked.at(-1)?.at ?? 0) - last} ms`,
    );
    await found.stop();
  }, 90_000);

  test('[EPOCH1] [RES1] to a point in time: epochs move, readers from before start over and end with the restored log', async () => {
    const began = performance.now();
    const restored = await servers.place('restored');
    await servers.run('restore.sh', [backup, noted.time], restored, { ARCHIVE: archive });
    await recover(restored);
    const recovered = performance.now();
    const gateway = await serveOver(restored);
    console.log(
      `restore to a point in time: ${Math.round(recovered - began)} ms to a server that takes writes, ` +
        `${Math.round(performance.now() - recovered)} ms to a gateway that is ready`,
    );
    await expectRestored(restored, gateway, noted.mids);

    // Once decided, it is decided: a second gateway changes nothing.
    const second = await serveOver(restored);
    expect(await metric(second.url, 'database_changes_total', '{epochs="advanced"}')).toBe(0);
    await gateway.stop();
    await second.stop();
    await restored.stop();
  }, 60_000);

  test('[EPOCH1] from a dump, and by hand where nothing could be noticed', async () => {
    await first.start();
    const file = join(servers.directory, 'tutti.dump');
    const whole = (await storedEvents(first.url, ROOM)).map(({ mid }) => mid);
    await servers.run('dump.sh', [file], first);
    await first.stop();
    const began = performance.now();
    const loaded = await servers.make('loaded');
    await loaded.start();
    await servers.run('load.sh', [file], loaded);
    const gateway = await serveOver(loaded);
    console.log(`restore from a dump: ${Math.round(performance.now() - began)} ms to a gateway that is ready`);
    await expectRestored(loaded, gateway, whole);

    const client = await connect({ url: gateway.url, token });
    const { position } = await client.call('room.join', { room: ROOM });
    expect(await tutti(loaded.url, 'epochs', 'advance', '--tenant', 'demo', '--yes')).toContain(
      'Advanced the epochs of 1 rooms',
    );
    const resync = await client.waitFor('room.resync');
    expect(resync).toMatchObject({ reason: 'epoch_changed', position: { seq: position.seq } });
    const next = await publish(client, 'after-the-advance');
    expect(next.position).toEqual({ epoch: resync.position.epoch, seq: position.seq + 1 });
    client.close();
  }, 60_000);
});
