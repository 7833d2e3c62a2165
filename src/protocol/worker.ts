import { z } from 'zod';
import { part } from './parts.js';
import { jsonData, modelName, runId } from './primitives.js';
import { run, runError, usage } from './runs.js';

/** Longest a claim waits for a run, in ms. */
export const MAX_CLAIM_WAIT_MS = 30_000;
/** Most parts one `run.push` carries. */
export const MAX_PARTS_PER_PUSH = 1_000;

export const fence = z.int().min(1);
const n = z.int().min(0);
const models = z.array(modelName).min(1).max(64);
/** Parts sent in all. A gateway that has fewer refuses with `out_of_order` instead of ending the run truncated. */
const sent = n.optional().meta({ description: 'Parts sent in all: refused with `out_of_order` where fewer arrived.' });
export const finishBody = { n: sent, usage: usage.optional(), meta: jsonData(4096).optional() };
export const failBody = { error: runError, retryable: z.boolean().default(false) };

export const pushReply = z.object({ committed: n, cancelled: z.boolean() });
export type PushReply = z.infer<typeof pushReply>;

/** What a worker gets with a run. `committed` is the number of the next part it has to send. */
export const assignment = z.object({
  run,
  input: z.unknown(),
  attempt: z.int(),
  fence,
  leaseMs: z.int(),
  committed: n,
});
export type Assignment = z.infer<typeof assignment>;

/** One NDJSON line of a pushed output. */
export const chunkLine = z.strictObject({ n, part });

/** Every command of namespace `/worker`. */
export const workerCommands = {
  'worker.ready': {
    payload: z.strictObject({ models, capacity: z.int().min(0).max(1000) }),
    reply: z.object({}),
  },
  'run.push': {
    payload: z.strictObject({ run: runId, fence, n, parts: z.array(part).min(1).max(MAX_PARTS_PER_PUSH) }),
    reply: pushReply,
  },
  'run.heartbeat': { payload: z.strictObject({ run: runId, fence }), reply: pushReply },
  'run.finish': {
    payload: z.strictObject({ run: runId, fence, ...finishBody }),
    reply: z.object({ run }),
  },
  'run.fail': {
    payload: z.strictObject({ run: runId, fence, ...failBody }),
    reply: z.object({ run }),
  },
} as const satisfies Record<string, { payload: z.ZodType; reply: z.ZodType }>;

export type WorkerCommandName = keyof typeof workerCommands;
export type WorkerCommandPayload<N extends WorkerCommandName> = z.output<(typeof workerCommands)[N]['payload']>;
export type WorkerCommandReply<N extends WorkerCommandName> = z.input<(typeof workerCommands)[N]['reply']>;

/** Pushes of namespace `/worker`. */
export interface WorkerPushes {
  'run.assigned': Assignment;
  'run.cancelled': { run: string };
}

export const claimBody = z.strictObject({ models, waitMs: z.int().min(0).max(MAX_CLAIM_WAIT_MS).default(0) });
