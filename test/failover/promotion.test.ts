import { rename } from 'node:fs/promises';
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';
import { openDatabase } from '../../src/db/database.js';
import type { CommandReply } from '../../src/protocol/commands.js';
import { event, logOf } from '../db/opened.js';
import { Reader } from '../e2e/feed-reader.js';
import { Publisher } from '../e2e/log-publisher.js';
import { expectWholeLog, inDatabase } from '../e2e/log-table.js';
import { connect } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { metric } from '../support/metric.js';
import { type Server, type Servers, startServers, wholePostgres } from '../support/postgres-pair.js';
import { devToken } from '../support/tokens.js';
import { tutti } from './cli.js';

const bin = wholePostgres();
const ROOM = 'hall';

describe.skipIf(!bin)('a synchronous standby is promoted (needs an installed Postgres)', () => {
  let servers: Servers;
  let first: Server;
  let second: Server;
  let gateways: GatewayProcess[];
  let token: string;

  beforeAll(async () => {
    servers = startServers(bin ?? '');
    first = await servers.make('first');
    await first.start();
    second = await servers.place('second');
    await servers.run('standby.sh', ['second'], first, { PGDATA: second.data });
    await second.start();
    await servers.run('synchronous.sh', ['second'], first);
    token = await devToken();
    const env = {
      DATABASE_URL: `postgres://postgres@127.0.0.1:${first.port},127.0.0.1:${second.port}/postgres`,
      TUTTI_DB_FAILOVER: 'synchronous',
      REDIS_URL: inject('redisUrl'),
      TUTTI_APPEND_TIMEOUT_MS: '4000',
    };
    const one = await startGateway({ env });
    gateways = [one, await startGateway({ env: one.env })];
  });
  afterAll(async () => {
    await Promise.all((gateways ?? []).map((gateway) => gateway.stop()));
    await servers?.destroy();
  });

  const sum = async (name: string, labels: string) => {
    const values = await Promise.all(gateways.map(({ url }) => metric(url, name, labels)));
    return values.reduce((total, value) => total + value, 0);
  };
  /** As the runbook has it: the old data directory is moved away, and a standby made that its successor waits for. */
  const makeStandby = async (name: string, old: Server, primary: Server) => {
    await old.stop();
    await rename(old.data, `${old.data}.old-${Date.now()}`);
    await servers.run('standby.sh', [name], primary, { PGDATA: old.data });
    await old.start();
    await servers.run('synchronous.sh', [name], primary);
    await inDatabase(primary.url, (sql) =>
      eventually('the primary waits for it', async () => {
        const [row] = await sql`select sync_state from pg_stat_replication where application_name = ${name}`;
        return row?.sync_state === 'sync';
      }),
    );
  };

  test('[FAIL1] [LOG1] [EPOCH1] kill -9 of the primary while publishing: nothing acknowledged is lost, and epochs stay', async () => {
    const urls = gateways.map(({ url }) => url);
    const turned = [...urls].reverse();
    const publishers = [0, 1, 2, 3].map((n) => new Publisher(`p${n}`, n % 2 ? urls : turned, ROOM, token, 3000));
    const readers = await Promise.all([urls, turned].map((order) => new Reader(order, ROOM, token).follow()));
    const acked = () => publishers.reduce((total, publisher) => total + publisher.acked.length, 0);
    let done = false;
    const publishing = publishers.map((publisher) => publisher.publish(() => done, 1));
    await eventually('publishing is under way', () => acked() > 300);

    const killedAt = performance.now();
    await first.kill9();
    const promoted = await servers.run('promote.sh', [], second, { OLD: `127.0.0.1:${first.port}` });
    const promotedAt = performance.now();
    expect(promoted).toContain('timeline 2');
    const before = acked();
    await eventually('publishing resumes', () => acked() > before + 8);
    const resumedAt = performance.now();
    console.log(
      `failover: promoted ${Math.round(promotedAt - killedAt)} ms after the kill, publishing ` +
        `${Math.round(resumedAt - promotedAt)} ms after that; acknowledged and lost: 0`,
    );

    await eventually('more is published', () => acked() > before + 300);
    done = true;
    await Promise.all(publishing);
    const mids = await expectWholeLog(second.url, ROOM, publishers);
    for (const reader of readers) {
      await reader.reaches(mids.length);
      await reader.stop();
      expect(reader.faults).toEqual([]);
      expect(reader.mids).toEqual(mids);
    }
    expect(await sum('database_changes_total', '{epochs="kept"}')).toBe(1);
    expect(await sum('database_changes_total', '{epochs="advanced"}')).toBe(0);
    for (const { url } of gateways) expect(await metric(url, 'database_timeline')).toBe(2);
  }, 60_000);

  test('[FAIL1] the old primary that came back is refused by gateways that know its successor, for reads and writes', async () => {
    const [gateway] = gateways;
    if (!gateway) throw new Error('no gateway');
    const client = await connect({ url: gateway.url, token });
    const publish = (mid: string) =>
      client.ask('event.publish', { room: ROOM, type: 'chat.message', data: { mid }, mid });
    await first.start();
    await second.stop();
    await eventually(
      'the old primary is refused',
      async () => (await sum('database_refusals_total', '{reason="old_timeline"}')) > 0,
    );
    const away = { ok: false, error: { code: 'log_unavailable' } };
    expect(await client.ask('event.history', { room: ROOM })).toMatchObject(away);
    expect(await publish('nowhere')).toMatchObject(away);
    expect(gateway.logs()).toContain('A server of DATABASE_URL may not serve');
    expect((await fetch(`${gateway.url}/readyz`)).status).toBe(503);

    // The same with only one difference: a gateway that starts now. Both answer, so it takes the newer one.
    await second.start();
    await eventually('publishing resumes', async () => (await publish('somewhere')).ok);
    const fresh = await startGateway({ env: gateway.env });
    gateways.push(fresh);
    expect(await metric(fresh.url, 'database_timeline')).toBe(2);
    client.close();
    const other = await connect({ url: fresh.url, token });
    await other.call('event.publish', { room: ROOM, type: 'chat.message', data: {}, mid: 'fresh' });
    other.close();
    const onFirst = await inDatabase(
      first.url,
      (sql) => sql`select mid from tutti.events where mid in ('nowhere', 'somewhere', 'fresh')`,
    );
    expect(onFirst).toEqual([]);
  }, 60_000);

  test('[FAIL1] the old primary acknowledges nothing to whoever knows no better, also where its wait is cancelled', async () => {
    const misled = await openDatabase({ url: first.url, poolSize: 2, appRole: 'tutti_app', failover: 'synchronous' });
    try {
      const asked = logOf(misled, { timeoutMs: 2000 }).append(event('demo', ROOM, 'misled'));
      const [settled] = await Promise.allSettled([
        asked,
        inDatabase(first.url, (sql) =>
          eventually('the commit waits for its standby', async () => {
            const [waits] = await sql`
              select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'`;
            return waits !== undefined;
          }),
        ),
      ]);
      expect(settled).toMatchObject({ status: 'rejected', reason: { code: 'log_unavailable' } });
    } finally {
      await misled.close();
    }
  }, 60_000);

  test('[FAIL1] [LOG1] the old primary is a standby again, and takes over by force while its primary still answers: nothing acknowledged is lost', async () => {
    await makeStandby('first', first, second);
    const urls = gateways.map(({ url }) => url);
    const publishers = [0, 1].map((n) => new Publisher(`back-${n}`, urls.slice(n), 'back', token, 3000));
    const acked = () => publishers.reduce((total, publisher) => total + publisher.acked.length, 0);
    let done = false;
    const publishing = publishers.map((publisher) => publisher.publish(() => done, 1));
    await eventually('publishing is under way', () => acked() > 50);

    const old = { OLD: `127.0.0.1:${second.port}` };
    await expect(servers.run('promote.sh', [], first, old)).rejects.toThrow('answers. Stop it first, or say FORCE=yes');
    expect(await servers.run('promote.sh', [], first, { ...old, FORCE: 'yes' })).toContain('timeline 3');
    // What commits at the old one waits for the standby that has left; those who get no answer go over.
    const before = acked();
    await eventually('publishing goes on', () => acked() > before + 50);
    // Where nobody publishes nobody misses an answer: that takes the end of the old one.
    await second.stop();
    await eventually('all gateways have the new primary', async () => {
      const timelines = await Promise.all(urls.map((url) => metric(url, 'database_timeline')));
      return timelines.every((timeline) => timeline === 3);
    });
    done = true;
    await Promise.all(publishing);
    await expectWholeLog(first.url, 'back', publishers);
    expect(await sum('database_changes_total', '{epochs="advanced"}')).toBe(0);
  }, 90_000);

  test('[EPOCH1] a standby that is away is not waited for any more, and is promoted all the same: epochs are advanced by hand', async () => {
    await makeStandby('second', second, first);
    const [gateway] = gateways;
    if (!gateway) throw new Error('no gateway');
    const client = await connect({ url: gateway.url, token });
    const publish = (mid: string) => client.ask('event.publish', { room: 'away', type: 'note', data: {}, mid });
    expect((await publish('kept')).ok).toBe(true);
    await second.stop();
    expect(await publish('waits')).toMatchObject({ ok: false, error: { code: 'log_unavailable' } });
    expect(await servers.run('synchronous.sh', ['off'], first)).toBe('The primary waits for nobody.');
    await eventually('publishing resumes', async () => (await publish('lost')).ok);
    const { position } = await client.call('room.join', { room: 'away', from: 'start' });
    // A reader that had it all is what is ahead of the new primary's log.
    await client.waitFor('event', ({ mid }) => mid === 'lost');

    await first.kill9();
    await second.start();
    await servers.run('promote.sh', [], second, { OLD: `127.0.0.1:${first.port}` });
    // It was promised that this does not happen: epochs stay, and only readers ahead of this log start over by themselves.
    const history = await eventually('the new primary is read', async () => {
      const answer = await client.ask('event.history', { room: 'away', after: 0 });
      return answer.ok && (answer as unknown as CommandReply<'event.history'>);
    });
    expect(history.events.map(({ mid }) => mid)).toEqual(['kept']);
    expect(history.epoch).toBe(position.epoch);
    expect(await sum('database_changes_total', '{epochs="advanced"}')).toBe(0);
    expect(await tutti(second.url, 'epochs', 'advance', '--yes')).toContain('Advanced the epochs of');
    const resync = await client.waitFor('room.resync', ({ reason }) => reason === 'epoch_changed');
    expect(resync.position.seq).toBe(1);
    expect(resync.position.epoch).not.toBe(position.epoch);
    expect(await publish('next')).toMatchObject({ ok: true, position: { epoch: resync.position.epoch, seq: 2 } });
    client.close();
  }, 90_000);
});
