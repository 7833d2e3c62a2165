import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Appended } from '../../src/core/log.js';
import type { Database } from '../../src/db/database.js';
import { type PostgresServer, startPostgres } from '../support/postgres.js';
import { startProxy } from '../support/proxy.js';
import { event, logOf, opened, readAll } from './opened.js';

let server: PostgresServer;
let database: Database;
beforeAll(async () => {
  server = await startPostgres();
  database = await opened(server.url);
});
afterAll(async () => {
  await database?.close();
  await server?.destroy();
});

/** Publishes one after the other, sending again under the same mid, until told to stop. */
function publisher(append: (mid: string) => Promise<Appended>, name: string) {
  const acked = new Map<string, Appended>();
  let running = true;
  const done = (async () => {
    for (let i = 0; running; i++) {
      const mid = `${name}-${i}`;
      for (let ack: Appended | undefined; !ack; ) {
        ack = await append(mid).catch(() => undefined);
        if (ack) acked.set(mid, ack);
        else if (!running) return;
        else await sleep(20);
      }
    }
  })();
  return {
    acked,
    stop: () => {
      running = false;
      return done;
    },
  };
}

test('[LOG1] [LOG2] [LOG4] kill -9 of Postgres while appending: nothing acknowledged is lost, renumbered or doubled', async () => {
  const log = logOf(database, { timeoutMs: 3000 });
  const publishers = Array.from({ length: 24 }, (_, p) =>
    publisher((mid) => log.append(event('a', `crash-${p % 3}`, mid, mid, `u${p}`)), `p${p}`),
  );
  const total = () => publishers.reduce((sum, { acked }) => sum + acked.size, 0);
  for (let kill = 0; kill < 4; kill++) {
    const before = total();
    while (total() < before + 500) await sleep(10);
    await server.kill9();
    await sleep(kill === 1 ? 4000 : 100);
    await server.start();
  }
  const before = total();
  while (total() < before + 500) await sleep(10);
  await Promise.all(publishers.map(({ stop }) => stop()));
  for (let room = 0; room < 3; room++) {
    const events = await readAll(log, 'a', `crash-${room}`);
    expect(events.map(({ seq }) => seq)).toEqual(events.map((_, i) => i + 1));
    const seqs = new Map(events.map(({ mid, seq }) => [mid, seq]));
    expect(seqs.size).toBe(events.length);
    for (const [p, { acked }] of publishers.entries()) {
      if (p % 3 !== room) continue;
      let last = 0;
      for (const [mid, ack] of acked) {
        expect(seqs.get(mid)).toBe(ack.seq);
        expect(ack.epoch).toBe(events[0]?.epoch);
        expect(ack.seq).toBeGreaterThan(last);
        last = ack.seq;
      }
    }
  }
}, 60_000);

test('[LOG1] an acknowledged append is on disk also where the database says synchronous_commit = off', async () => {
  await database.asOwner(5000, async (sql) => {
    await sql.unsafe('alter database postgres set synchronous_commit = off');
  });
  const careless = await opened(server.url);
  try {
    const log = logOf(careless);
    const acks = await Promise.all(Array.from({ length: 20 }, (_, i) => log.append(event('a', 'careless', `m${i}`))));
    await server.kill9();
    await server.start();
    expect(await readAll(log, 'a', 'careless')).toHaveLength(acks.length);
  } finally {
    await careless.close();
    await database.asOwner(5000, (sql) => sql.unsafe('alter database postgres reset synchronous_commit').execute());
  }
});

test('[ERR1] a database that vanishes without a word is `log_unavailable` in bounded time, and back when it is back', async () => {
  const url = new URL(server.url);
  const proxy = await startProxy(Number(url.port));
  url.port = String(proxy.port);
  const far = await opened(url.href, 1500);
  try {
    const log = logOf(far, { timeoutMs: 1000 });
    await log.append(event('a', 'far', 'before'));
    expect(await far.healthy()).toBe(true);
    proxy.blackhole();
    const lost = await Promise.allSettled([
      log.append(event('a', 'far', 'lost')),
      log.read('a', 'far', { limit: 1, order: 'asc' }),
    ]);
    for (const result of lost)
      expect(result).toMatchObject({ status: 'rejected', reason: { code: 'log_unavailable' } });
    expect(await far.healthy()).toBe(false);
    proxy.heal();
    for (let i = 0; !(await far.healthy()); i++) {
      if (i > 100) expect.fail('not healthy again');
      await sleep(50);
    }
    const retried = await log.append(event('a', 'far', 'lost'));
    expect(retried.seq).toBe(2);
    expect(await readAll(log, 'a', 'far')).toHaveLength(2);
  } finally {
    await far.close();
    await proxy.close();
  }
});
