import { z } from 'zod';
import { type Part, part } from './parts.js';
import { actor } from './primitives.js';

export const liveRunStates = ['queued', 'claimed', 'streaming'] as const;
export const terminalRunStates = ['completed', 'failed', 'cancelled', 'expired'] as const;
export const runState = z.enum([...liveRunStates, ...terminalRunStates]);
export type RunState = z.infer<typeof runState>;
export type TerminalRunState = (typeof terminalRunStates)[number];
export const isTerminal = (state: RunState): state is TerminalRunState =>
  (terminalRunStates as readonly string[]).includes(state);

export const usage = z
  .object({
    inputTokens: z.int().min(0).optional(),
    outputTokens: z.int().min(0).optional(),
    totalTokens: z.int().min(0).optional(),
  })
  .meta({ description: 'Tokens as the worker counted them.' });
export type Usage = z.infer<typeof usage>;

export const runError = z.object({ code: z.string().max(64), message: z.string().max(1000) });
export type RunError = z.infer<typeof runError>;

/** A run as everybody in its room sees it. Times are integer ms since the Unix epoch. */
export const run = z.object({
  id: z.string(),
  room: z.string(),
  model: z.string(),
  state: runState,
  attempt: z.int().min(1),
  initiator: actor,
  createdAt: z.int(),
  startedAt: z.int().optional(),
  firstTokenAt: z.int().optional(),
  finishedAt: z.int().optional(),
  usage: usage.optional(),
  error: runError.optional(),
  length: z.int().optional().meta({ description: 'Parts in the final output; only of an ended run.' }),
});
export type Run = z.infer<typeof run>;

/**
 * A live run as `room.join` returns it: `output` is folded, `next` is the number of the next part that is pushed. Of a run
 * that has said much, `output` is the beginning.
 */
export const liveRun = run.extend({ output: z.array(part), next: z.int().min(0) });
export interface LiveRun extends Run {
  output: Part[];
  next: number;
}
