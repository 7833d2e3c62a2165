import { z } from 'zod';

/** Largest encoded part a worker may push, in UTF-8 bytes. */
export const MAX_PART_BYTES = 64 * 1024;

const id = z.string().min(1).max(128);
const anyJson = z.unknown();
const text = z.string();
const providerMetadata = z.record(z.string(), z.unknown()).optional();

/**
 * One part of a run's output: a subset of the AI SDK's UI message stream, version 5
 * (https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol). Unknown fields are kept; unknown types are refused.
 */
export const part = z.union([
  z.discriminatedUnion('type', [
    z.looseObject({ type: z.literal('start'), messageId: id.optional(), messageMetadata: anyJson.optional() }),
    z.looseObject({ type: z.literal('start-step') }),
    z.looseObject({ type: z.literal('finish-step') }),
    z.looseObject({ type: z.literal('text-start'), id, providerMetadata }),
    z.looseObject({ type: z.literal('text-delta'), id, delta: text, providerMetadata }),
    z.looseObject({ type: z.literal('text-end'), id, providerMetadata }),
    z.looseObject({ type: z.literal('reasoning-start'), id, providerMetadata }),
    z.looseObject({ type: z.literal('reasoning-delta'), id, delta: text, providerMetadata }),
    z.looseObject({ type: z.literal('reasoning-end'), id, providerMetadata }),
    z.looseObject({ type: z.literal('tool-input-start'), toolCallId: id, toolName: id }),
    z.looseObject({ type: z.literal('tool-input-delta'), toolCallId: id, inputTextDelta: text }),
    z.looseObject({ type: z.literal('tool-input-available'), toolCallId: id, toolName: id, input: anyJson }),
    z.looseObject({
      type: z.literal('tool-input-error'),
      toolCallId: id,
      toolName: id,
      input: anyJson,
      errorText: text,
    }),
    z.looseObject({ type: z.literal('tool-output-available'), toolCallId: id, output: anyJson }),
    z.looseObject({ type: z.literal('tool-output-error'), toolCallId: id, errorText: text }),
    z.looseObject({ type: z.literal('source-url'), sourceId: id, url: text, title: text.optional() }),
    z.looseObject({ type: z.literal('source-document'), sourceId: id, mediaType: text, title: text }),
    z.looseObject({ type: z.literal('file'), url: text, mediaType: text }),
    z.looseObject({ type: z.literal('message-metadata'), messageMetadata: anyJson }),
    z.looseObject({ type: z.literal('finish'), messageMetadata: anyJson.optional() }),
    z.looseObject({ type: z.literal('error'), errorText: text }),
    z.looseObject({ type: z.literal('abort') }),
  ]),
  z.looseObject({ type: z.templateLiteral(['data-', z.string().min(1).max(64)]), id: id.optional(), data: anyJson }),
]);
export type Part = z.infer<typeof part>;
