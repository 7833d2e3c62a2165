import { randomBytes } from 'node:crypto';
import type { Part } from '../../src/protocol/parts.js';
import type { Run } from '../../src/protocol/runs.js';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { freshDatabase } from '../support/postgres.js';
import { sharedRedisUrl } from '../support/redis.js';
import { devToken } from '../support/tokens.js';

export const sleep = (ms: number) => new Promise<void>((wait) => setTimeout(wait, ms));

/** What a test wants undone, last first. Call {@link Undo.all} in `afterEach` or `afterAll`. */
export class Undo {
  readonly #steps: (() => unknown)[] = [];

  add<T>(made: T, undo: (made: T) => unknown): T {
    this.#steps.push(() => undo(made));
    return made;
  }

  async all(): Promise<void> {
    for (const step of this.#steps.splice(0).reverse()) await step();
  }
}

export interface PairOptions {
  databaseUrl?: string;
  redisUrl?: string;
  env?: Record<string, string>;
}

/** Two gateways with one database and one Redis prefix; `more` starts another sibling. */
export async function startPair(undo: Undo, options: PairOptions = {}) {
  const databaseUrl = options.databaseUrl ?? undo.add(await freshDatabase(), ({ drop }) => drop()).url;
  const env = {
    DATABASE_URL: databaseUrl,
    REDIS_URL: options.redisUrl ?? sharedRedisUrl(),
    TUTTI_REDIS_PREFIX: `e2e-${randomBytes(5).toString('hex')}:`,
    ...options.env,
  };
  const more = async (): Promise<GatewayProcess> => undo.add(await startGateway({ env }), (one) => one.stop());
  const [a, b] = await Promise.all([more(), more()]);
  return { a, b, env, more };
}

export const userToken = (user: string) => devToken({ user });

/** A route of a gateway, answered with JSON. */
export async function call(
  url: string,
  bearer: string,
  method: 'GET' | 'POST' | 'DELETE',
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<{ status: number; body: unknown }> {
  const response = await fetch(`${url}${path}`, {
    method,
    headers: {
      authorization: `Bearer ${bearer}`,
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      ...headers,
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const text = await response.text();
  return { status: response.status, body: text === '' ? undefined : JSON.parse(text) };
}

/** The run as the database has it. */
export async function storedRun(url: string, bearer: string, id: string): Promise<Run & { output?: Part[] }> {
  const { status, body } = await call(url, bearer, 'GET', `/v1/runs/${id}`);
  if (status !== 200) throw new Error(`GET /v1/runs/${id}: ${status} ${JSON.stringify(body)}`);
  return (body as { run: Run & { output?: Part[] } }).run;
}
