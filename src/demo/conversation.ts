import { z } from 'zod';

const message = z.object({ role: z.enum(['system', 'user', 'assistant']), content: z.string() });
export type Message = z.infer<typeof message>;

const input = z.union([
  z.object({ messages: z.array(message).min(1) }),
  z
    .object({ prompt: z.string() })
    .transform(({ prompt }) => ({ messages: [{ role: 'user' as const, content: prompt }] })),
  z.string().transform((prompt) => ({ messages: [{ role: 'user' as const, content: prompt }] })),
]);

/** The conversation in a run's input: `{ messages }`, `{ prompt }` or a text. `undefined` where it is none of them. */
export function conversationOf(value: unknown): Message[] | undefined {
  const parsed = input.safeParse(value);
  return parsed.success ? parsed.data.messages : undefined;
}
