import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { as, jsonAs, type Stand, standUp } from './stand.js';

type Validate = { validateResponse(status: string, body: unknown): { errors: unknown } | undefined };
/** CommonJS whose types do not say so. */
const { default: Validator } = createRequire(import.meta.url)('openapi-response-validator') as {
  default: new (args: object) => Validate;
};

interface Operation {
  operationId: string;
  responses: Record<string, { content?: Record<string, { schema: object }> }>;
}
interface Api {
  openapi: string;
  paths: Record<string, Record<string, Operation>>;
  components: { schemas: Record<string, object> };
}

let stand: Stand;
let api: Api;

beforeAll(async () => {
  stand = await standUp();
  stand.runs.add('r-queued');
  stand.runs.add('r-done', 'completed');
  api = (await (await fetch(`${stand.url}/openapi.json`)).json()) as Api;
});
afterAll(() => stand.close());

const inComponents = (value: unknown): unknown => JSON.parse(JSON.stringify(value));

/** What is wrong with an answer by the description, or `undefined`. */
async function problemWith(path: string, method: string, response: Response): Promise<unknown> {
  const described = api.paths[path]?.[method]?.responses[String(response.status)];
  if (!described) return `status ${response.status} is not described: ${await response.text()}`;
  const type = response.headers.get('content-type')?.split(';')[0];
  const body = await response.text();
  if (!described.content) return body === '' ? undefined : 'a body is not described';
  const media = type === undefined ? undefined : described.content[type];
  if (!media) return `type ${type} is not described`;
  if (!type?.endsWith('json')) return undefined;
  const validator = new Validator({
    responses: { [response.status]: { description: '', schema: inComponents(media.schema) } },
    components: inComponents(api.components),
  });
  return validator.validateResponse(String(response.status), JSON.parse(body))?.errors;
}

interface Case {
  path: string;
  method?: string;
  url?: string;
  who?: string;
  body?: unknown;
  headers?: Record<string, string>;
  status: number;
}

const event = { type: 'chat', data: [1], mid: 'o1' };
const fence = { 'tutti-fence': '1' };
const ndjson = { ...fence, 'content-type': 'application/x-ndjson' };
const mint = { user: 'u', cap: { '*': ['join'] }, ttlSeconds: 60 };

/** In order: some need what the ones before left. */
const cases: Case[] = [
  { path: '/v1/tokens', method: 'post', who: 'server', body: mint, status: 201 },
  { path: '/v1/tokens', method: 'post', who: 'server', body: {}, status: 400 },
  { path: '/v1/tokens', method: 'post', who: 'ann', body: mint, status: 403 },
  { path: '/v1/rooms', status: 200 },
  { path: '/v1/rooms', url: '/v1/rooms?limit=0', status: 400 },
  { path: '/v1/rooms', who: 'nobody', status: 401 },
  { path: '/v1/rooms', who: 'away', status: 503 },
  { path: '/v1/rooms', who: 'broken', status: 500 },
  { path: '/v1/rooms/{room}', url: '/v1/rooms/lobby', status: 200 },
  { path: '/v1/rooms/{room}', url: '/v1/rooms/nowhere', status: 404 },
  { path: '/v1/rooms/{room}', method: 'delete', url: '/v1/rooms/old', status: 204 },
  { path: '/v1/rooms/{room}', method: 'delete', url: '/v1/rooms/old', who: 'guest', status: 403 },
  { path: '/v1/rooms/{room}/events', method: 'post', url: '/v1/rooms/lobby/events', body: event, status: 201 },
  { path: '/v1/rooms/{room}/events', method: 'post', url: '/v1/rooms/lobby/events', body: event, status: 200 },
  { path: '/v1/rooms/{room}/events', method: 'post', url: '/v1/rooms/lobby/events', body: 1, status: 400 },
  {
    path: '/v1/rooms/{room}/events',
    method: 'post',
    url: '/v1/rooms/lobby/events',
    body: { type: 'chat', data: 'x'.repeat(65_536) },
    status: 413,
  },
  { path: '/v1/rooms/{room}/events', url: '/v1/rooms/lobby/events?after=0&limit=5&order=asc', status: 200 },
  { path: '/v1/rooms/{room}/stream', url: '/v1/rooms/lobby/stream?after=start', status: 200 },
  { path: '/v1/rooms/{room}/stream', url: '/v1/rooms/lobby/stream?after=x', status: 400 },
  { path: '/v1/rooms/{room}/stream', url: '/v1/rooms/other/stream', who: 'guest', status: 403 },
  {
    path: '/v1/rooms/{room}/broadcasts',
    method: 'post',
    url: '/v1/rooms/lobby/broadcasts',
    body: { type: 'cursor', data: {} },
    status: 202,
  },
  {
    path: '/v1/rooms/{room}/runs',
    method: 'post',
    url: '/v1/rooms/lobby/runs',
    body: { model: 'demo', input: {}, mid: 'r1' },
    status: 201,
  },
  {
    path: '/v1/rooms/{room}/runs',
    method: 'post',
    url: '/v1/rooms/lobby/runs',
    body: { model: 'demo', input: {}, mid: 'r1' },
    status: 200,
  },
  { path: '/v1/runs/{id}', url: '/v1/runs/r1', status: 200 },
  { path: '/v1/runs/{id}', url: '/v1/runs/r-done', status: 200 },
  { path: '/v1/runs/{id}', url: '/v1/runs/none', status: 404 },
  { path: '/v1/runs/{id}/stream', url: '/v1/runs/r-done/stream', status: 200 },
  { path: '/v1/runs/{id}/stream', url: '/v1/runs/none/stream', status: 404 },
  { path: '/v1/worker/claims', method: 'post', who: 'worker', body: { models: ['demo'] }, status: 200 },
  { path: '/v1/worker/claims', method: 'post', who: 'worker', body: { models: [] }, status: 400 },
  {
    path: '/v1/worker/runs/{id}/chunks',
    method: 'post',
    url: '/v1/worker/runs/r1/chunks',
    who: 'worker',
    headers: ndjson,
    body: { n: 0, part: { type: 'start' } },
    status: 200,
  },
  {
    path: '/v1/worker/runs/{id}/chunks',
    method: 'post',
    url: '/v1/worker/runs/r1/chunks',
    who: 'worker',
    headers: ndjson,
    body: { n: 7, part: { type: 'start' } },
    status: 409,
  },
  {
    path: '/v1/worker/runs/{id}/heartbeat',
    method: 'post',
    url: '/v1/worker/runs/r1/heartbeat',
    who: 'worker',
    headers: fence,
    status: 200,
  },
  {
    path: '/v1/worker/runs/{id}/finish',
    method: 'post',
    url: '/v1/worker/runs/r1/finish',
    who: 'worker',
    headers: { ...fence, 'content-type': 'application/json' },
    body: { usage: { totalTokens: 3 } },
    status: 200,
  },
  {
    path: '/v1/worker/runs/{id}/fail',
    method: 'post',
    url: '/v1/worker/runs/r-queued/fail',
    who: 'worker',
    headers: { ...fence, 'content-type': 'application/json' },
    body: { error: { code: 'oom', message: 'no memory' }, retryable: true },
    status: 200,
  },
  { path: '/v1/worker/claims', method: 'post', who: 'worker', body: { models: ['demo'], waitMs: 1 }, status: 204 },
  { path: '/v1/runs/{id}/cancel', method: 'post', url: '/v1/runs/r1/cancel', status: 200 },
  { path: '/healthz', status: 200 },
  { path: '/readyz', status: 200 },
  { path: '/metrics', status: 200 },
  { path: '/openapi.json', status: 200 },
  { path: '/docs', status: 200 },
];

test('every route answers as its description says', async () => {
  for (const one of cases) {
    const method = one.method ?? 'get';
    const who = one.who ?? 'ann';
    const abort = new AbortController();
    const response = await fetch(stand.url + (one.url ?? one.path), {
      method: method.toUpperCase(),
      headers: one.headers ? as(who, one.headers) : one.body === undefined ? as(who) : jsonAs(who),
      signal: abort.signal,
      ...(one.body === undefined ? {} : { body: JSON.stringify(one.body) }),
    });
    const what = `${method} ${one.url ?? one.path}`;
    expect([what, response.status]).toEqual([what, one.status]);
    if (response.headers.get('content-type') === 'text/event-stream' && one.path.includes('rooms')) {
      expect(api.paths[one.path]?.[method]?.responses['200']?.content).toHaveProperty('text/event-stream');
      abort.abort();
      continue;
    }
    expect([what, await problemWith(one.path, method, response)]).toEqual([what, undefined]);
  }
});

test('every route of the description is among them', () => {
  const described = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((m) => `${m} ${path}`),
  );
  const tried = new Set(cases.map(({ method = 'get', path }) => `${method} ${path}`));
  expect(described.filter((one) => !tried.has(one))).toEqual([]);
  expect(described.length).toBeGreaterThan(20);
});

test('what a request needs is marked as required, any JSON value too', () => {
  const text = JSON.stringify(api.paths['/v1/rooms/{room}/events']?.post);
  expect(JSON.parse(text).requestBody.content['application/json'].schema.required.sort()).toEqual(['data', 'type']);
});

test('the description passes the linter', () => {
  const dir = mkdtempSync(join(tmpdir(), 'tutti-openapi-'));
  try {
    writeFileSync(join(dir, 'openapi.json'), JSON.stringify(api));
    const root = resolve(import.meta.dirname, '../..');
    const linted = spawnSync(
      process.execPath,
      [
        join(root, 'node_modules/@redocly/cli/bin/cli.js'),
        'lint',
        `--config=${join(root, 'redocly.yaml')}`,
        join(dir, 'openapi.json'),
      ],
      {
        cwd: dir,
        encoding: 'utf8',
        env: { ...process.env, REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true' },
      },
    );
    expect(linted.stderr + linted.stdout).not.toMatch(/\[[0-9]+\] /);
    expect(linted.status).toBe(0);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test('the page lists every operation and runs no script', async () => {
  const page = await fetch(`${stand.url}/docs`);
  const text = await page.text();
  for (const methods of Object.values(api.paths)) {
    for (const { operationId } of Object.values(methods)) expect(text).toContain(`id="${operationId}"`);
  }
  expect(text).not.toMatch(/<script|src=|@import/);
  expect(page.headers.get('content-security-policy')).toContain("default-src 'none'");
});
