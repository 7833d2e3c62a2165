import { fork } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import postgres from 'postgres';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type PostgresServer, startPostgres } from '../support/postgres.js';

type Tally = { started: number; done: number; failed: number; doneSinceMark: number };

let server: PostgresServer;
beforeAll(async () => {
  server = await startPostgres({ settings: { fsync: 'off' } });
  const sql = postgres(server.url, { max: 1 });
  await sql`create unlogged table written (text text)`;
  await sql.end();
});
afterAll(() => server.destroy());

test('[LOG1] Postgres killed in the middle of writes does not end the process, and every query settles', async () => {
  const writer = fork(new URL('./driver-writer.ts', import.meta.url), [server.url], {
    execArgv: ['--import', 'tsx'],
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
  });
  let stderr = '';
  writer.stderr?.on('data', (text) => {
    stderr += text;
  });
  const exited = once(writer, 'exit') as Promise<[number | null]>;
  const ask = async (message: 'mark' | 'stop' | 'tally') => {
    if (!writer.connected) expect.fail(`The writer ended: ${stderr}`);
    writer.send(message);
    const [tally] = await Promise.race([
      once(writer, 'message') as Promise<[Tally]>,
      exited.then(([code]) => expect.fail(`The writer ended with ${code}: ${stderr}`)),
    ]);
    return tally;
  };
  try {
    for (let kill = 0; kill < 8; kill++) {
      await ask('mark');
      while ((await ask('tally')).doneSinceMark < 50) await sleep(10);
      await sleep(Math.random() * 40);
      await server.kill9();
      await sleep(50);
      await server.start();
    }
    await ask('mark');
    while ((await ask('tally')).doneSinceMark < 50) await sleep(10);
    const { started, done, failed } = await ask('stop');
    expect(done + failed).toBe(started);
    expect(failed).toBeGreaterThan(0);
    expect(await exited).toEqual([0, null]);
  } finally {
    writer.kill('SIGKILL');
  }
}, 60_000);
