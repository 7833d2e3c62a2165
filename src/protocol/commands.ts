import { z } from 'zod';
import { right } from './capabilities.js';
import {
  eventType,
  jsonData,
  MAX_HISTORY_LIMIT,
  mid,
  modelName,
  position,
  roomName,
  runId,
  seq,
} from './primitives.js';
import { liveRun, run } from './runs.js';

/** Where to start reading: after a position, at the oldest event kept, or with what comes next. */
export const joinFrom = z.union([position, z.literal('start'), z.literal('latest')]);
export type JoinFrom = z.infer<typeof joinFrom>;

export const resyncReason = z.enum(['epoch_changed', 'position_too_old', 'position_ahead']);
export type ResyncReason = z.infer<typeof resyncReason>;

/** An event as readers see it. `at` is ms since the Unix epoch. */
export const roomEvent = z.object({
  room: z.string(),
  epoch: z.string(),
  seq,
  mid: z.string(),
  type: z.string(),
  data: z.unknown(),
  by: z.object({ kind: z.string(), id: z.string(), name: z.string().optional() }),
  at: z.int(),
});

export const historyRange = {
  after: seq.optional(),
  before: seq.optional(),
  limit: z.int().min(1).max(MAX_HISTORY_LIMIT).optional(),
  order: z.enum(['asc', 'desc']).optional(),
};

/** Every command of namespace `/`: what it takes and what its ack carries beside `ok: true`. */
export const commands = {
  'room.join': {
    payload: z.strictObject({ room: roomName, from: joinFrom.optional() }),
    reply: z.object({
      position,
      resumed: z.boolean(),
      resync: z.object({ reason: resyncReason }).optional(),
      head: seq,
      runs: z.array(liveRun),
      capabilities: z.array(right),
    }),
  },
  'room.leave': { payload: z.strictObject({ room: roomName }), reply: z.object({}) },
  'event.publish': {
    payload: z.strictObject({ room: roomName, type: eventType, data: jsonData(), mid: mid.optional() }),
    reply: z.object({ position, mid: z.string(), at: z.int(), duplicate: z.boolean() }),
  },
  'event.history': {
    payload: z.strictObject({ room: roomName, ...historyRange }),
    reply: z.object({ events: z.array(roomEvent), epoch: z.string(), head: seq, floor: seq }),
  },
  'broadcast.send': {
    payload: z.strictObject({ room: roomName, type: eventType, data: jsonData() }),
    reply: z.object({}),
  },
  'run.create': {
    payload: z.strictObject({ room: roomName, model: modelName, input: jsonData(), mid: mid.optional() }),
    reply: z.object({ run }),
  },
  'run.cancel': { payload: z.strictObject({ run: runId }), reply: z.object({ run }) },
  'session.refresh': {
    payload: z.strictObject({ token: z.string().max(16_384) }),
    reply: z.object({ expiresAt: z.int(), capabilities: z.record(z.string(), z.array(right)) }),
  },
} as const satisfies Record<string, { payload: z.ZodType; reply: z.ZodType }>;

export type CommandName = keyof typeof commands;
export type CommandPayload<N extends CommandName> = z.output<(typeof commands)[N]['payload']>;
export type CommandReply<N extends CommandName> = z.input<(typeof commands)[N]['reply']>;
