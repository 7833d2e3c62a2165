import { afterAll, beforeAll, expect, test } from 'vitest';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { freshDatabase } from '../support/postgres.js';
import { DEV_SERVER_KEY, DEV_WORKER_KEY, devToken } from '../support/tokens.js';

/* The whole way through a real gateway: a run asked for, computed and read over HTTP alone. */

let gateway: GatewayProcess;
let dispose: () => Promise<void>;

beforeAll(async () => {
  const database = await freshDatabase();
  dispose = () => database.drop();
  gateway = await startGateway({ env: { DATABASE_URL: database.url } });
});
afterAll(async () => {
  await gateway?.stop();
  await dispose?.();
});

async function call(method: string, path: string, bearer: string, body?: unknown, more: Record<string, string> = {}) {
  const response = await fetch(gateway.url + path, {
    method,
    headers: { authorization: `Bearer ${bearer}`, 'content-type': 'application/json', ...more },
    ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
  });
  const text = await response.text();
  return { status: response.status, text, json: text.startsWith('{') ? JSON.parse(text) : undefined };
}

test('[RUN1] create, claim, push, finish and read back', async () => {
  const minted = await call('POST', '/v1/tokens', DEV_SERVER_KEY, {
    user: 'ann',
    cap: { '*': ['join', 'publish', 'run.create', 'run.cancel'] },
    ttlSeconds: 600,
  });
  expect(minted.status).toBe(201);
  const ann: string = minted.json.token;
  const created = await call('POST', '/v1/rooms/lobby/runs', ann, { model: 'm', input: { text: 'hi' }, mid: 'a' });
  expect(created.status).toBe(201);
  const again = await call('POST', '/v1/rooms/lobby/runs', ann, { model: 'm', input: { text: 'hi' }, mid: 'a' });
  expect([again.status, again.json.run.id]).toEqual([200, created.json.run.id]);

  const claimed = await call('POST', '/v1/worker/claims', DEV_WORKER_KEY, { models: ['m'], waitMs: 2000 });
  expect(claimed.json).toMatchObject({ run: { id: created.json.run.id }, input: { text: 'hi' }, committed: 0 });
  const id: string = claimed.json.run.id;
  const fence = { 'tutti-fence': String(claimed.json.fence) };
  const parts = [
    { type: 'text-start', id: '1' },
    { type: 'text-delta', id: '1', delta: 'Hé' },
    { type: 'text-delta', id: '1', delta: 'llo' },
    { type: 'text-end', id: '1' },
  ];
  const lines = parts.map((part, n) => `${JSON.stringify({ n, part })}\n`).join('');
  const ndjson = { ...fence, 'content-type': 'application/x-ndjson' };
  const reading = call('GET', `/v1/runs/${id}/stream`, ann);
  const pushed = await call('POST', `/v1/worker/runs/${id}/chunks`, DEV_WORKER_KEY, lines, ndjson);
  expect([pushed.status, pushed.json.cancelled]).toEqual([200, false]);
  const stale = await call('POST', `/v1/worker/runs/${id}/chunks`, DEV_WORKER_KEY, lines, {
    ...ndjson,
    'tutti-fence': '99',
  });
  expect([stale.status, stale.json.code]).toEqual([409, 'fenced']);
  const finished = await call('POST', `/v1/worker/runs/${id}/finish`, DEV_WORKER_KEY, {}, fence);
  expect(finished.json.run.state).toBe('completed');

  const { text } = await reading;
  const streamed = [...text.matchAll(/^data: (\{.*)$/gm)].map(([, json]) => JSON.parse(json ?? ''));
  const delta = (all: { type: string; delta?: string }[]) => all.map((part) => part.delta ?? '').join('');
  expect(delta(streamed)).toBe('Héllo');
  expect(text.endsWith('data: [DONE]\n\n')).toBe(true);
  const read = await call('GET', `/v1/runs/${id}`, ann);
  expect(delta(read.json.run.output)).toBe('Héllo');
  const history = await call('GET', '/v1/rooms/lobby/events?order=asc', ann);
  expect(history.json.events.map(({ type }: { type: string }) => type)).toEqual(['run.created', 'run.completed']);
});

test('[RES1] a room read over SSE from the start, then from Last-Event-ID', async () => {
  const ann = await devToken();
  for (const n of [1, 2, 3]) await call('POST', '/v1/rooms/feed/events', ann, { type: 'chat', data: n });
  const read = async (headers: Record<string, string>, count: number) => {
    const abort = new AbortController();
    const response = await fetch(`${gateway.url}/v1/rooms/feed/stream?after=start`, {
      headers: { authorization: `Bearer ${ann}`, ...headers },
      signal: abort.signal,
    });
    let text = '';
    const ids = () => [...text.matchAll(/^id: (\S+)\nevent: event$/gm)].map(([, id]) => id ?? '');
    for await (const bytes of response.body ?? []) {
      text += Buffer.from(bytes as Uint8Array).toString();
      if (ids().length >= count) break;
    }
    abort.abort();
    return ids();
  };
  const all = await read({}, 3);
  expect(all.map((id) => id.split(':').at(-1))).toEqual(['1', '2', '3']);
  expect(await read({ 'last-event-id': all[1] ?? '' }, 1)).toEqual([all[2]]);
});
