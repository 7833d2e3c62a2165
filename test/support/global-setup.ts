import type { TestProject } from 'vitest/node';
import { startPostgres } from './postgres.js';
import { startRedis } from './redis.js';

declare module 'vitest' {
  interface ProvidedContext {
    postgresUrl: string;
    redisUrl: string;
  }
}

/** One Postgres and one Redis for the whole run: DATABASE_URL_TEST and REDIS_URL, or servers of our own. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const ends: (() => Promise<void>)[] = [];
  const end = async () => {
    await Promise.allSettled(ends.map((stop) => stop()));
  };
  try {
    project.provide('redisUrl', process.env.REDIS_URL || (await ownRedis(ends)));
    project.provide('postgresUrl', process.env.DATABASE_URL_TEST || (await ownPostgres(ends)));
  } catch (error) {
    await end();
    throw error;
  }
  return end;
}

async function ownRedis(ends: (() => Promise<void>)[]): Promise<string> {
  const redis = await startRedis();
  ends.push(() => redis.stop());
  return redis.url;
}

async function ownPostgres(ends: (() => Promise<void>)[]): Promise<string> {
  const server = await startPostgres();
  ends.push(() => server.destroy());
  return server.url;
}
