import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Part } from '../../src/protocol/parts.js';
import { inDatabase, storedEvents } from '../e2e/log-table.js';
import { storedRun } from '../e2e/run-stage.js';
import { RunStream } from '../e2e/run-viewers.js';
import { BareWorker, play } from '../e2e/run-workers.js';
import { connect, type TestClient } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { metric } from '../support/metric.js';
import { type Server, type Servers, startServers, wholePostgres } from '../support/postgres-pair.js';
import { devToken } from '../support/tokens.js';

const bin = wholePostgres();
const ROOM = 'hall';
const words = (prefix: string, count: number): Part[] => [
  { type: 'text-start', id: '0' },
  ...Array.from({ length: count }, (_, n): Part => ({ type: 'text-delta', id: '0', delta: `${prefix}${n} ` })),
  { type: 'text-end', id: '0' },
];

describe.skipIf(!bin)('a standby that lacks something is promoted (needs an installed Postgres)', () => {
  let servers: Servers;
  let first: Server;
  let second: Server;
  let gateway: GatewayProcess;
  let token: string;
  let client: TestClient;

  beforeAll(async () => {
    servers = startServers(bin ?? '');
    first = await servers.make('first');
    await first.start();
    second = await servers.place('second');
    await servers.run('standby.sh', ['second'], first, { PGDATA: second.data });
    await second.start();
    token = await devToken();
    gateway = await startGateway({
      env: { DATABASE_URL: `postgres://postgres@127.0.0.1:${first.port},127.0.0.1:${second.port}/postgres` },
    });
    client = await connect({ url: gateway.url, token });
  });
  afterAll(async () => {
    client?.close();
    await gateway?.stop();
    await servers?.destroy();
  });

  const publish = (mid: string) => client.call('event.publish', { room: ROOM, type: 'note', data: { mid }, mid });

  test('[EPOCH1] [RES1] [RUN2] gateways that live advance the epochs; readers start over; runs begin again or end', async () => {
    const { position } = await client.call('room.join', { room: ROOM, from: 'start' });
    for (let n = 0; n < 5; n++) await publish(`kept-${n}`);
    const kept = (await client.call('run.create', { room: ROOM, model: 'score', input: {} })).run;
    const worker = await BareWorker.connect(gateway.url, { capacity: 2 });
    const keptWork = await worker.assignment(kept.id);
    await play(worker, keptWork, words('before ', 8), { to: 3 });
    await eventually('three parts are committed', async () => {
      const reply = await worker.ask<{ committed: number }>('run.heartbeat', { run: kept.id, fence: keptWork.fence });
      return reply.committed === 3;
    });
    await inDatabase(first.url, (sql) =>
      eventually('the standby has it all', async () => {
        const [row] = await sql`select from pg_stat_replication where replay_lsn = pg_current_wal_lsn()`;
        return row !== undefined;
      }),
    );
    const survive = await storedEvents(first.url, ROOM);
    await second.stop();

    // From here on the standby has nothing of it.
    await play(worker, keptWork, words('before ', 8), { from: 3, to: 8 });
    const gone = (await client.call('run.create', { room: ROOM, model: 'score', input: {} })).run;
    const goneWork = await worker.assignment(gone.id);
    await play(worker, goneWork, words('gone ', 8), { to: 5 });
    for (let n = 0; n < 5; n++) await publish(`lost-${n}`);
    const last = await publish('lost-last');
    await client.waitFor('event', ({ mid }) => mid === 'lost-last');
    const streams = await Promise.all([kept, gone].map(({ id }) => RunStream.open(gateway.url, token, id)));
    const [keptStream, goneStream] = streams;
    await keptStream?.reaches(8);
    await goneStream?.reaches(5);

    await first.kill9();
    await second.start();
    await servers.run('promote.sh', [], second, { OLD: `127.0.0.1:${first.port}` });

    const resync = await client.waitFor('room.resync');
    expect(resync.reason).toBe('epoch_changed');
    expect(resync.position.epoch).not.toBe(position.epoch);
    expect(await metric(gateway.url, 'database_changes_total', '{epochs="advanced"}')).toBe(1);
    const history = await client.call('event.history', { room: ROOM, after: 0 });
    expect(history.epoch).toBe(resync.position.epoch);
    expect(history.events.slice(0, survive.length).map(({ mid }) => mid)).toEqual(survive.map(({ mid }) => mid));
    expect(history.events.map(({ mid }) => mid)).not.toContain('lost-last');

    // Whoever comes back with a position from before starts over, also where that number is taken again.
    for (const from of [last.position, { ...position, seq: 2 }]) {
      const other = await connect({ url: gateway.url, token });
      const joined = await other.call('room.join', { room: ROOM, from });
      expect(joined).toMatchObject({ resumed: false, resync: { reason: 'epoch_changed' } });
      other.close();
    }

    // What the worker goes on with is refused: its fence is from before.
    for (const work of [keptWork, goneWork]) {
      await eventually('the worker is refused', () =>
        worker.push(work, 8, words('zombie ', 1).slice(1, 2)).then(
          () => false,
          ({ error }) => ['fenced', 'not_found'].includes(error.code),
        ),
      );
    }
    await goneStream?.closed;
    expect(goneStream?.done).toBe(false);

    // Whoever of the two has a place free gets the run that begins again.
    const another = await BareWorker.connect(gateway.url);
    const { holder, again } = await eventually('the run is given out again', () => {
      for (const holder of [worker, another]) {
        const again = holder.assigned.find(({ run, attempt }) => run.id === kept.id && attempt === 2);
        if (again) return { holder, again };
      }
      return undefined;
    });
    const parts = words('after ', 8);
    await play(holder, again, parts);
    await holder.finish(again, parts.length);
    await keptStream?.closed;
    expect(keptStream?.done).toBe(true);
    expect(keptStream?.parts).toEqual(parts);
    for (const stream of streams) expect(stream.faults).toEqual([]);
    expect(await storedRun(gateway.url, token, kept.id)).toMatchObject({ state: 'completed', attempt: 2 });
    await expect(storedRun(gateway.url, token, gone.id)).rejects.toThrow('404');
    worker.close();
    another.close();

    const next = await publish('next');
    expect(next.position.epoch).toBe(resync.position.epoch);
    const stored = await storedEvents(second.url, ROOM);
    expect(stored.map(({ seq }) => seq)).toEqual(stored.map((_, at) => at + 1));
    expect(stored.at(-1)).toMatchObject({ seq: next.position.seq, mid: 'next' });
  }, 60_000);
});
