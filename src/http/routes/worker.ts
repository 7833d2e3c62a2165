import {
  fenceHeader,
  runParams,
  runReply,
  workerClaimBody,
  workerClaimReply,
  workerFailBody,
  workerFinishBody,
  workerPushReply,
} from '../../protocol/http.js';
import { parse } from '../../protocol/primitives.js';
import { receiveChunks } from '../chunks.js';
import type { Exchange } from '../exchange.js';
import type { RunsPort } from '../ports.js';
import { empty, json, type Route, route, streamingRoute } from '../route.js';
import type { Standing } from '../standing.js';

const fenceHeaders = {
  'Tutti-Fence': { description: 'The `fence` of the assignment.', required: true, schema: fenceHeader },
};
const fenceOf = (exchange: Exchange): number => parse(fenceHeader, exchange.head.headers.get('tutti-fence') ?? '');

/**
 * Aborted when the exchange is finished or the gateway drains. `AbortSignal.any` keeps something of every signal it made
 * for as long as the drain's own lives, which is as long as the process.
 */
function endOf(exchange: Exchange, draining: AbortSignal): AbortSignal {
  const end = new AbortController();
  const abort = () => end.abort();
  if (draining.aborted) abort();
  draining.addEventListener('abort', abort);
  exchange.onFinished(() => {
    draining.removeEventListener('abort', abort);
    abort();
  });
  return end.signal;
}

const shared = { tag: 'worker', access: 'worker', errors: ['fenced', 'not_found', 'conflict'] } as const;

/** `draining` ends claims that wait, so that no run is given to a worker whose gateway leaves. */
export const workerRoutes = (runs: RunsPort, draining: AbortSignal, standing: Standing): Route[] => [
  route({
    ...shared,
    method: 'POST',
    path: '/v1/worker/claims',
    id: 'claimRun',
    lasting: true,
    summary: 'Claim a queued run, waiting for one if there is none',
    body: { json: workerClaimBody },
    responses: {
      200: { description: 'The run is yours while you send within `leaseMs`.', schema: workerClaimReply },
      204: { description: 'None came.' },
    },
    errors: [...shared.errors, 'quota_exceeded'],
    handle: async ({ principal, body, exchange }) => {
      standing.hold(exchange, principal);
      const assignment = await runs.claim(principal, body, endOf(exchange, draining));
      return assignment ? json(200, assignment) : empty(204);
    },
  }),
  streamingRoute({
    ...shared,
    method: 'POST',
    path: '/v1/worker/runs/:id/chunks',
    id: 'pushChunks',
    lasting: true,
    summary: 'Push output as lines of JSON, read as they arrive',
    description:
      'Lines are `{ n, part }` with consecutive `n` from 0 in each attempt. The body may stay open for the whole run. A ' +
      'cancel, a lost lease or a bad line is answered at once, without waiting for the end of the body.',
    params: runParams,
    headers: fenceHeaders,
    body: { stream: 'application/x-ndjson', description: 'Lines `{ "n": 0, "part": { "type": "text-delta", … } }`.' },
    responses: { 200: { description: 'What is committed, and whether to stop.', schema: workerPushReply } },
    errors: ['fenced', 'not_found', 'out_of_order', 'payload_too_large', 'quota_exceeded'],
    handle: async ({ principal, params, body, exchange }) => {
      const fence = fenceOf(exchange);
      standing.hold(exchange, principal);
      return json(200, await receiveChunks(runs, { exchange, body, worker: principal, run: params.id, fence }));
    },
  }),
  route({
    ...shared,
    method: 'POST',
    path: '/v1/worker/runs/:id/heartbeat',
    id: 'heartbeatRun',
    summary: 'Keep the lease without output',
    params: runParams,
    headers: fenceHeaders,
    responses: { 200: { description: 'What is committed, and whether to stop.', schema: workerPushReply } },
    handle: async ({ principal, params, exchange }) =>
      json(200, await runs.heartbeat(principal, { run: params.id, fence: fenceOf(exchange) })),
  }),
  route({
    ...shared,
    method: 'POST',
    path: '/v1/worker/runs/:id/finish',
    id: 'finishRun',
    summary: 'End a run as completed',
    params: runParams,
    headers: fenceHeaders,
    body: { json: workerFinishBody },
    responses: { 200: { description: 'The run as it ended.', schema: runReply } },
    handle: async ({ principal, params, body, exchange }) =>
      json(200, { run: await runs.finish(principal, { run: params.id, fence: fenceOf(exchange), ...body }) }),
  }),
  route({
    ...shared,
    method: 'POST',
    path: '/v1/worker/runs/:id/fail',
    id: 'failRun',
    summary: 'End an attempt as failed; a retryable one is tried again while attempts are left',
    params: runParams,
    headers: fenceHeaders,
    body: { json: workerFailBody },
    responses: { 200: { description: 'The run as it stands now.', schema: runReply } },
    handle: async ({ principal, params, body, exchange }) =>
      json(200, { run: await runs.fail(principal, { run: params.id, fence: fenceOf(exchange), ...body }) }),
  }),
];
