import { setTimeout as sleep } from 'node:timers/promises';
import type { Outcome, Part } from '../worker/index.js';
import type { Message } from './conversation.js';
import { hashText, type NgramModel } from './ngram.js';

/** What the page shows instead of a model's name. */
export const NGRAM_LABEL = 'n-gram demo model';

/**
 * An answer of the n-gram model at the pace of a reader, about 30 tokens/s. The same conversation gives the same answer.
 * @throws what `signal` was aborted with.
 */
export async function* streamNgram(
  model: NgramModel,
  messages: Message[],
  signal: AbortSignal,
): AsyncGenerator<Part, Outcome> {
  const prompt = messages.findLast((message) => message.role === 'user')?.content ?? '';
  const seed = hashText(messages.map((message) => `${message.role}:${message.content}`).join('\n'));
  yield { type: 'start', messageMetadata: { model: 'ngram', label: NGRAM_LABEL } };
  yield { type: 'text-start', id: 'text-0' };
  let count = 0;
  for (const token of model.generate(prompt, seed)) {
    await sleep(/[.,;:]/.test(token) ? 60 : 28, undefined, { signal });
    yield { type: 'text-delta', id: 'text-0', delta: token };
    count++;
  }
  const inputTokens = prompt.split(/\s+/).filter(Boolean).length;
  const usage = { inputTokens, outputTokens: count, totalTokens: inputTokens + count };
  yield { type: 'text-end', id: 'text-0' };
  yield { type: 'finish', messageMetadata: { usage } };
  return { usage, meta: { model: 'ngram', label: NGRAM_LABEL } };
}
