import type { RunView } from '../src/client/index.js';
import type { Part } from '../src/protocol/parts.js';

/** A run's output as the page shows it. */
export interface Answer {
  text: string;
  reasoning: string;
  label: string;
  error: string | undefined;
}

const record = (value: unknown): Record<string, unknown> =>
  typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
const text = (value: unknown): string | undefined => (typeof value === 'string' && value !== '' ? value : undefined);

export function answerOf(run: RunView, parts: readonly Part[]): Answer {
  let label = text(record(run.meta).label);
  let error = run.run?.error?.message;
  const texts: string[] = [];
  const reasoning: string[] = [];
  for (const part of parts) {
    if (part.type === 'text-delta') texts.push(String(part.delta));
    else if (part.type === 'text-start' && texts.length > 0) texts.push('\n\n');
    else if (part.type === 'reasoning-delta') reasoning.push(String(part.delta));
    else if (part.type === 'start') label ??= text(record(part.messageMetadata).label);
    else if (part.type === 'error') error ??= String(part.errorText);
  }
  return { text: texts.join(''), reasoning: reasoning.join(''), label: label ?? run.model, error };
}

export const isLive = (run: RunView): boolean =>
  run.state === 'queued' || run.state === 'claimed' || run.state === 'streaming';
