import {
  broadcastBody,
  historyQuery,
  historyReply,
  publishBody,
  publishReply,
  roomListQuery,
  roomListReply,
  roomParams,
  roomReply,
  roomStreamQuery,
  streamFrom,
} from '../../protocol/http.js';
import { type JsonText, parse, toJsonText } from '../../protocol/primitives.js';
import type { RoomsPort } from '../ports.js';
import type { RoomStreams } from '../room-stream.js';
import { empty, json, jsonText, type Route, route } from '../route.js';

const DEFAULT_ROOMS_LIMIT = 100;

export const roomRoutes = (rooms: RoomsPort, streams: RoomStreams): Route[] => [
  route({
    method: 'GET',
    path: '/v1/rooms',
    id: 'listRooms',
    tag: 'rooms',
    summary: 'List the rooms of your tenant by name',
    access: 'any',
    query: roomListQuery,
    responses: {
      200: { description: 'A page of rooms; `next` is the cursor of the page after.', schema: roomListReply },
    },
    handle: async ({ principal, query }) =>
      json(200, await rooms.list(principal, query.cursor, query.limit ?? DEFAULT_ROOMS_LIMIT)),
  }),
  route({
    method: 'GET',
    path: '/v1/rooms/:room',
    id: 'getRoom',
    tag: 'rooms',
    summary: 'Read the head of a room and its live runs',
    access: 'any',
    params: roomParams,
    responses: { 200: { description: 'The room.', schema: roomReply } },
    errors: ['not_found'],
    handle: async ({ principal, params }) => json(200, await rooms.get(principal, params.room)),
  }),
  route({
    method: 'DELETE',
    path: '/v1/rooms/:room',
    id: 'eraseRoom',
    tag: 'rooms',
    summary: 'Erase a room with its events and runs',
    access: 'any',
    params: roomParams,
    responses: { 204: { description: 'It is gone.' } },
    errors: ['not_found'],
    handle: async ({ principal, params }) => {
      await rooms.erase(principal, params.room);
      return empty(204);
    },
  }),
  route({
    method: 'POST',
    path: '/v1/rooms/:room/events',
    id: 'publishEvent',
    tag: 'events',
    summary: 'Publish an event; it is committed when this answers',
    access: 'any',
    params: roomParams,
    body: { json: publishBody },
    responses: {
      200: {
        description: 'An event with this `mid` was published before; this is its position.',
        schema: publishReply,
      },
      201: { description: 'Committed.', schema: publishReply },
    },
    errors: ['conflict'],
    handle: async ({ principal, params, body }) => {
      const reply = await rooms.publish(principal, { room: params.room, ...body });
      return json(reply.duplicate ? 200 : 201, reply);
    },
  }),
  route({
    method: 'GET',
    path: '/v1/rooms/:room/events',
    id: 'readHistory',
    tag: 'events',
    summary: 'Read old events by range',
    access: 'any',
    params: roomParams,
    query: historyQuery,
    responses: { 200: { description: 'A page of events.', schema: historyReply } },
    errors: ['not_found'],
    handle: async ({ principal, params, query }) => {
      const { events, ...at } = await rooms.history(principal, { room: params.room, ...query });
      return jsonText(200, `{"events":[${events.join(',')}],${toJsonText(at).slice(1)}` as JsonText);
    },
  }),
  route({
    method: 'GET',
    path: '/v1/rooms/:room/stream',
    id: 'streamRoom',
    lasting: true,
    tag: 'events',
    summary: 'Follow a room as server-sent events',
    description:
      'Events come as `event: event` with `id: epoch:seq`, without a gap or a repeat. `event: resync` says that the feed ' +
      'could not continue from where you were and goes on from the `position` in it. Reconnect with `Last-Event-ID`; ' +
      'it wins over `after`.',
    access: 'any',
    params: roomParams,
    query: roomStreamQuery,
    headers: { 'Last-Event-ID': { description: '`epoch:seq` of the last event read.', required: false } },
    responses: { 200: { description: 'The feed.', type: 'text/event-stream' } },
    errors: ['quota_exceeded'],
    handle: async ({ principal, params, query, exchange }) => {
      const last = exchange.head.headers.get('last-event-id');
      await streams.open(exchange, principal, params.room, last ? parse(streamFrom, last) : query.after);
      return undefined;
    },
  }),
  route({
    method: 'POST',
    path: '/v1/rooms/:room/broadcasts',
    id: 'sendBroadcast',
    tag: 'rooms',
    summary: 'Send to whoever reads the room now; nothing is stored',
    access: 'any',
    params: roomParams,
    body: { json: broadcastBody },
    responses: { 202: { description: 'On its way; it may be lost.' } },
    handle: ({ principal, params, body }) => {
      rooms.broadcast(principal, { room: params.room, ...body });
      return empty(202);
    },
  }),
];
