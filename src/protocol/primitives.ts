import { z } from 'zod';
import { TuttiError } from '../errors.js';

/** Largest encoded `data` of an event, broadcast or run input, in UTF-8 bytes of JSON. */
export const MAX_DATA_BYTES = 64 * 1024;
/** How deep arrays and objects of `data` may nest; a scalar has depth 0, `[]` has depth 1. */
export const MAX_DATA_DEPTH = 32;
/** Most events one page of history carries. */
export const MAX_HISTORY_LIMIT = 500;

/** A JSON document as text, checked once where it came in and never parsed again on its way to readers. */
export type JsonText = string & { readonly json: unique symbol };

/** A JSON value as text. For values made by the server itself; client values pass {@link jsonData}. */
export const toJsonText = (value: unknown): JsonText => JSON.stringify(value) as JsonText;

function depthProblem(value: unknown, depth: number, maxDepth: number): string | undefined {
  if (value === null || typeof value === 'boolean' || typeof value === 'string') return undefined;
  if (typeof value === 'number') return Number.isFinite(value) ? undefined : 'is not a JSON number';
  if (typeof value !== 'object') return 'is not JSON';
  const prototype = Object.getPrototypeOf(value);
  const plain = Array.isArray(value) || prototype === Object.prototype || prototype === null;
  if (!plain) return 'is binary; JSON is due here';
  if (depth >= maxDepth) return `nests deeper than ${maxDepth}`;
  for (const child of Object.values(value)) {
    const problem = depthProblem(child, depth + 1, maxDepth);
    if (problem) return problem;
  }
  return undefined;
}

/**
 * Any JSON value of at most `maxBytes` encoded and {@link MAX_DATA_DEPTH} deep. Parses to its JSON text;
 * object keys such as `__proto__` are plain data in it.
 */
export const jsonData = (maxBytes: number = MAX_DATA_BYTES) =>
  z.unknown().transform((value, ctx): JsonText => {
    const fail = (message: string, code?: 'payload_too_large') => {
      ctx.addIssue({ code: 'custom', message, params: { code } });
      return z.NEVER;
    };
    if (value === undefined) return fail('is required');
    const problem = depthProblem(value, 0, MAX_DATA_DEPTH);
    if (problem) return fail(problem);
    const text = JSON.stringify(value) as JsonText;
    if (Buffer.byteLength(text) > maxBytes)
      return fail(`is larger than ${maxBytes} bytes encoded`, 'payload_too_large');
    return text;
  });

export const roomName = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$/, 'must match [A-Za-z0-9][A-Za-z0-9._:-]{0,127}')
  .meta({ description: 'A room name.', example: 'lobby' });

export const mid = z
  .string()
  .regex(/^[A-Za-z0-9_-]{1,64}$/, 'must be 1-64 of [A-Za-z0-9_-]')
  .meta({ description: 'A client-made id that makes a retry safe; a UUID is recommended.' });

export const seq = z.int().min(0).meta({ description: 'The number of an event in its room: 1, 2, 3 …' });

export const epoch = z.string().min(1).max(64).meta({ description: 'Changes only when the log was rebuilt.' });

/** Where a reader stands in a room: it has everything up to and including `seq`. */
export const position = z.strictObject({ epoch, seq });
export type Position = z.infer<typeof position>;

const RESERVED_TYPES = /^(run|room)\./;

export const eventType = z
  .string()
  .regex(/^[a-z0-9._-]{1,64}$/, 'must be 1-64 of [a-z0-9._-]')
  .refine((type) => !RESERVED_TYPES.test(type), 'must not begin with "run." or "room.", which are reserved');

export const runId = z.string().regex(/^[A-Za-z0-9_-]{1,64}$/, 'must be a run id');
export const modelName = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$/, 'must be a model name');
export const tenantId = z.string().regex(/^[a-z0-9][a-z0-9-]{0,62}$/, 'must match [a-z0-9][a-z0-9-]{0,62}');
export const userId = z.string().min(1).max(256);

/** Who did something: shown with every event. */
export const actor = z.object({
  kind: z.enum(['user', 'worker', 'server', 'operator']),
  id: z.string(),
  name: z.string().optional(),
});
export type Actor = z.infer<typeof actor>;

/**
 * Parses untrusted input.
 * @throws TuttiError `bad_request`, or `payload_too_large` where the input is only too big; the message names the field.
 */
export function parse<T extends z.ZodType>(schema: T, input: unknown): z.output<T> {
  const result = schema.safeParse(input);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const path = issue?.path.map(String).join('.') ?? '';
  const message = `${path === '' ? 'The request' : path}: ${issue?.message ?? 'is not valid'}`;
  const tooLarge = issue?.code === 'custom' && issue.params?.code === 'payload_too_large';
  throw new TuttiError(tooLarge ? 'payload_too_large' : 'bad_request', message.slice(0, 300));
}
