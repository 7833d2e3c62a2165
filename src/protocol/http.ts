import { z } from 'zod';
import { type ErrorCode, errors } from '../errors.js';
import { capabilities } from './capabilities.js';
import { commands } from './commands.js';
import { part } from './parts.js';
import { jsonData, MAX_HISTORY_LIMIT, roomName, runId, seq, userId } from './primitives.js';
import { run } from './runs.js';
import { assignment, claimBody, failBody, fence, finishBody, pushReply } from './worker.js';

/*
 * What HTTP takes and answers. Bodies are the socket commands without the fields that stand in the path; the server
 * parses with these schemas and `GET /openapi.json` is generated from them.
 */

/** Longest life a minted token may ask for, in s; the gateway's own limit may be lower. */
const TOKEN_TTL_MAX_SECONDS = 31_536_000;
/** Most rooms one page of `GET /v1/rooms` carries. */
export const MAX_ROOMS_LIMIT = 500;

/** An integer of a query string: digits only, so that `1e3`, ` 1` and an empty value are refused. */
const queryInt = (min: number, max: number, description: string) =>
  z
    .string()
    .regex(/^[0-9]{1,16}$/, 'must be a whole number')
    .transform(Number)
    .refine((value) => Number.isSafeInteger(value) && value >= min && value <= max, `must be ${min} to ${max}`)
    .meta({ type: 'integer', minimum: min, maximum: max, description });

export const roomParams = z.object({ room: roomName });
export const runParams = z.object({ id: runId });

/** Largest `info`, in UTF-8 bytes of JSON. */
const INFO_MAX_BYTES = 1024;

/** `POST /v1/tokens`. */
export const mintBody = z.strictObject({
  user: userId,
  name: z.string().min(1).max(256).optional(),
  cap: capabilities,
  ttlSeconds: z.int().min(1).max(TOKEN_TTL_MAX_SECONDS),
  info: jsonData(INFO_MAX_BYTES)
    .transform((text): unknown => JSON.parse(text))
    .optional(),
});
export type MintBody = z.output<typeof mintBody>;
export const mintReply = z.object({ token: z.string(), expiresAt: z.int() });

export const roomListQuery = z.strictObject({
  cursor: roomName.optional().meta({ description: 'The `next` of the page before.' }),
  limit: queryInt(1, MAX_ROOMS_LIMIT, 'Rooms in the page; 100 by default.').optional(),
});
export const roomSummary = z
  .object({ room: z.string(), epoch: z.string(), head: seq, floor: seq, createdAt: z.int() })
  .meta({ id: 'RoomSummary', description: 'Events with `floor < seq <= head` can be read.' });
export const roomListReply = z.object({ rooms: z.array(roomSummary), next: z.string().optional() });
export const roomReply = roomSummary.extend({ runs: z.array(run) }).meta({ id: 'Room' });

const publish = commands['event.publish'];
export const publishBody = publish.payload.omit({ room: true });
export const publishReply = publish.reply;

export const historyQuery = z.strictObject({
  after: queryInt(0, Number.MAX_SAFE_INTEGER, 'Only events with a greater seq.').optional(),
  before: queryInt(0, Number.MAX_SAFE_INTEGER, 'Only events with a smaller seq.').optional(),
  limit: queryInt(1, MAX_HISTORY_LIMIT, 'Events in the page.').optional(),
  order: z
    .enum(['asc', 'desc'])
    .optional()
    .meta({ description: 'Oldest or newest first. Default: `asc` with `after`, else `desc`.' }),
});
export const historyReply = commands['event.history'].reply;

/** `epoch:seq`; the last colon parts them. */
const positionText = /^(.{1,64}):([0-9]{1,16})$/s;

/** Parses the position a stream is read from. Used for `?after=` and for `Last-Event-ID`. */
export const streamFrom = z
  .string()
  .max(96)
  .transform((text, ctx) => {
    if (text === 'start' || text === 'latest') return text;
    const match = positionText.exec(text);
    const at = Number(match?.[2]);
    if (match?.[1] !== undefined && Number.isSafeInteger(at)) return { epoch: match[1], seq: at };
    ctx.addIssue({ code: 'custom', message: 'must be epoch:seq, start or latest' });
    return z.NEVER;
  })
  .meta({ type: 'string', description: '`epoch:seq` of the last event read, `start`, or `latest` (the default).' });
export const roomStreamQuery = z.strictObject({ after: streamFrom.optional() });

export const broadcastBody = commands['broadcast.send'].payload.omit({ room: true });
export const createRunBody = commands['run.create'].payload.omit({ room: true });
export const runReply = z.object({ run });
export const runWithOutput = run.extend({ output: z.array(part).optional() }).meta({
  id: 'RunWithOutput',
  description: 'A run; `output` is the folded output of an ended run.',
});
export const runWithOutputReply = z.object({ run: runWithOutput });

/** `Last-Event-ID` of a run's stream: `attempt:n` of the last part read. */
export const runStreamFrom = z
  .string()
  .regex(/^[0-9]{1,9}:[0-9]{1,9}$/, 'must be attempt:n')
  .transform((text) => {
    const [attempt = 1, n = 0] = text.split(':').map(Number);
    return { attempt, n: n + 1 };
  });

/** Header `Tutti-Fence`. */
export const fenceHeader = z
  .string()
  .regex(/^[0-9]{1,16}$/, 'must be the fence of the assignment')
  .transform(Number)
  .pipe(fence);

export const workerClaimBody = claimBody;
export const workerClaimReply = assignment;
export const workerPushReply = pushReply;
export const workerFinishBody = z.strictObject(finishBody);
export const workerFailBody = z.strictObject(failBody);

/** `reasons`: why traffic should not come. `degraded`: what does not work though it should come. */
export const readiness = z
  .object({ ready: z.boolean(), reasons: z.array(z.string()), degraded: z.array(z.string()) })
  .meta({ id: 'Readiness' });
export const liveness = z.object({ ok: z.literal(true) });

const codes = Object.keys(errors) as [ErrorCode, ...ErrorCode[]];

/** RFC 9457 problem details: what every refusal over HTTP is. `code` is contract, the texts are not. */
export const problem = z
  .object({
    type: z.string(),
    title: z.string(),
    status: z.int(),
    detail: z.string(),
    code: z.enum(codes),
    retryable: z.boolean(),
    retryAfterMs: z.int().optional(),
    expected: z.int().optional().meta({ description: 'The next `n` a worker has to send (`out_of_order`).' }),
  })
  .meta({ id: 'Problem', description: 'RFC 9457 problem details.' });
export type Problem = z.infer<typeof problem>;
