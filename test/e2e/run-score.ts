import type { Part } from '../../src/protocol/parts.js';

/** Long enough for several commits; letters of several widths in UTF-8, quotes and line feeds among them. */
const WORDS = ['tutti', ' "forte"', ' grüße', ' 合奏', ' 🎻', '\nmeno', ' \\mosso', ' crescendo'];

/**
 * The output that a worker of the tests makes: `count` parts, the same whenever it is asked with the same label. The label is
 * in every piece of text, so that a byte of another output shows.
 */
export function scoreOf(label: string, count: number): Part[] {
  const parts: Part[] = [
    { type: 'start', messageMetadata: { label } },
    { type: 'reasoning-start', id: 'r' },
    { type: 'reasoning-delta', id: 'r', delta: `thinking of ${label}` },
    { type: 'reasoning-end', id: 'r' },
    { type: 'text-start', id: 't' },
  ];
  for (let i = 0; parts.length < count - 2; i++) {
    parts.push({ type: 'text-delta', id: 't', delta: `${WORDS[i % WORDS.length]} [${label} ${i}]` });
  }
  parts.push({ type: 'text-end', id: 't' }, { type: 'finish' });
  return parts;
}
