import postgres from 'postgres';
import { expect, test } from 'vitest';
import { freshDatabase, startPostgres } from '../support/postgres.js';
import { startRedis } from '../support/redis.js';

test('a killed Postgres comes back with what it had committed', async () => {
  const server = await startPostgres();
  try {
    const first = postgres(server.url, { max: 1 });
    await first`create table kept (n int)`;
    await first`insert into kept values (1)`;
    await first.end({ timeout: 0 });
    const before = server.pid;
    await server.kill9();
    await server.start();
    expect(server.pid).not.toBe(before);
    const second = postgres(server.url, { max: 1 });
    expect((await second`select n from kept`)[0]?.n).toBe(1);
    await second.end({ timeout: 0 });
  } finally {
    await server.destroy();
  }
});

test('databases of the shared server are separate', async () => {
  const [one, two] = await Promise.all([freshDatabase(), freshDatabase()]);
  expect(one.url).not.toBe(two.url);
  await Promise.all([one.drop(), two.drop()]);
});

test('a killed Redis starts again on its port', async () => {
  const redis = await startRedis();
  await redis.kill9();
  await redis.start();
  expect(redis.pid).toBeGreaterThan(0);
  await redis.stop();
});
