import {
  createRunBody,
  roomParams,
  runParams,
  runReply,
  runStreamFrom,
  runWithOutputReply,
} from '../../protocol/http.js';
import { parse } from '../../protocol/primitives.js';
import type { RunsPort } from '../ports.js';
import { json, type Route, route } from '../route.js';
import type { RunStreams } from '../run-stream.js';

export const runRoutes = (runs: RunsPort, streams: RunStreams): Route[] => [
  route({
    method: 'POST',
    path: '/v1/rooms/:room/runs',
    id: 'createRun',
    tag: 'runs',
    summary: 'Ask a model to answer in a room',
    access: 'any',
    params: roomParams,
    body: { json: createRunBody },
    responses: {
      200: { description: 'A run with this `mid` was created before; this is it.', schema: runReply },
      201: { description: 'Queued.', schema: runReply },
    },
    errors: ['conflict', 'quota_exceeded'],
    handle: async ({ principal, params, body }) => {
      const { run, created } = await runs.create(principal, { room: params.room, ...body });
      return json(created ? 201 : 200, { run });
    },
  }),
  route({
    method: 'GET',
    path: '/v1/runs/:id',
    id: 'getRun',
    tag: 'runs',
    summary: 'Read a run; an ended one with its output',
    access: 'any',
    params: runParams,
    responses: { 200: { description: 'The run.', schema: runWithOutputReply } },
    errors: ['not_found'],
    handle: async ({ principal, params }) => json(200, { run: await runs.get(principal, params.id) }),
  }),
  route({
    method: 'POST',
    path: '/v1/runs/:id/cancel',
    id: 'cancelRun',
    tag: 'runs',
    summary: 'Stop a run; an ended one stays as it is',
    access: 'any',
    params: runParams,
    responses: { 200: { description: 'The run as it ended.', schema: runReply } },
    errors: ['not_found'],
    handle: async ({ principal, params }) => json(200, { run: await runs.cancel(principal, params.id) }),
  }),
  route({
    method: 'GET',
    path: '/v1/runs/:id/stream',
    id: 'streamRun',
    lasting: true,
    tag: 'runs',
    summary: "Follow a run's output as an AI SDK UI message stream",
    description:
      'One part per event with `id: attempt:n`, then `data: [DONE]`. A part `data-tutti-reset` says that the output ' +
      'starts over in another attempt. A run that did not complete ends with a part `error` or `abort`. Reconnect with ' +
      '`Last-Event-ID`.',
    access: 'any',
    params: runParams,
    headers: { 'Last-Event-ID': { description: '`attempt:n` of the last part read.', required: false } },
    responses: { 200: { description: 'The output.', type: 'text/event-stream' } },
    errors: ['not_found', 'quota_exceeded'],
    handle: async ({ principal, params, exchange }) => {
      const last = exchange.head.headers.get('last-event-id');
      await streams.serve(exchange, principal, params.id, last ? parse(runStreamFrom, last) : undefined);
      return undefined;
    },
  }),
];
