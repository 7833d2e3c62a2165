import { afterEach, expect, test } from 'vitest';
import { connect } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { startGateway } from '../support/gateway.js';
import { metric } from '../support/metric.js';
import { startPostgres } from '../support/postgres.js';
import { devToken } from '../support/tokens.js';
import { inDatabase } from './log-table.js';
import { Undo } from './run-stage.js';

const EVENTS = 6000;

const undo = new Undo();
afterEach(() => undo.all());

test('[RES1] Postgres is killed in the middle of a replay: the reader keeps its connection and goes on when it is back', async () => {
  const server = undo.add(await startPostgres(), (one) => one.destroy());
  const env = { DATABASE_URL: server.url, TUTTI_SOCKET_PING_TIMEOUT_MS: '60000' };
  const gateway = undo.add(await startGateway({ env }), (one) => one.stop());
  await inDatabase(server.url, async (sql) => {
    await sql`insert into tutti.rooms (tenant_id, name, epoch, head) values ('demo', 'long', 'e1', ${EVENTS})`;
    await sql`insert into tutti.events (room_id, seq, tenant_id, mid, type, data, by, at)
      select r.id, n, 'demo', 'm' || n, 'a', to_json(repeat('x', 4096)), '{"kind":"server","id":"s"}', 0
      from tutti.rooms r, generate_series(1, ${EVENTS}::integer) n where r.name = 'long'`;
  });
  const client = undo.add(await connect({ url: gateway.url, token: await devToken() }), (one) => one.close());
  const { engine } = client.socket.io as unknown as {
    engine: { transport: { ws: { _socket: { pause(): void; resume(): void } } } };
  };
  await client.call('room.join', { room: 'long', from: 'start' });
  await client.until(() => client.of('event').length > 0, 'the first page');
  // It stops reading, so that the replay stands in the middle.
  engine.transport.ws._socket.pause();
  const queries = () => metric(gateway.url, 'log_queries_total', '{purpose="replay"}');
  await eventually('the replay stands', async () => {
    const before = await queries();
    await new Promise((resolve) => setTimeout(resolve, 300));
    return (await queries()) === before;
  });
  await server.kill9();
  engine.transport.ws._socket.resume();
  await eventually('the replay misses the log', () => gateway.logs().includes('A replay could not read the log'));
  const got = client.of('event').length;
  expect(got).toBeLessThan(EVENTS);
  await server.start();
  await client.until(() => client.of('event').length >= EVENTS, 'the rest', 30_000);
  expect(client.of('event').map(({ seq }) => seq)).toEqual(Array.from({ length: EVENTS }, (_, at) => at + 1));
  expect(client.disconnects).toEqual([]);
  expect(client.of('room.resync')).toEqual([]);
}, 60_000);
