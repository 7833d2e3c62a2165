import { createReadStream } from 'node:fs';
import type { Entry } from '../history.js';

export type EntryKind = Entry[0];
export type EntryOf<K extends EntryKind> = Extract<Entry, [K, ...unknown[]]>;
export type Visitors = { [K in EntryKind]?: (entry: EntryOf<K>) => void };

/**
 * Calls the visitor of each entry's kind, in the order of the file; entries without a visitor are not even parsed. A
 * last line cut short by a killed process is left out.
 * @throws Error for a line that is no entry.
 */
export async function visitEntries(file: string, visitors: Visitors): Promise<void> {
  const visit = visitors as Record<string, ((entry: Entry) => void) | undefined>;
  let rest = '';
  let line = 0;
  for await (const chunk of createReadStream(file, { encoding: 'utf8', highWaterMark: 1024 * 1024 })) {
    const text = rest + chunk;
    let start = 0;
    for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n', start)) {
      line += 1;
      const kind = text.slice(start + 2, text.indexOf('"', start + 2));
      const visitor = visit[kind];
      if (visitor) visitor(parse(text.slice(start, end), file, line));
      start = end + 1;
    }
    rest = text.slice(start);
  }
}

function parse(text: string, file: string, line: number): Entry {
  try {
    return JSON.parse(text) as Entry;
  } catch (cause) {
    throw new Error(`${file}:${line} is no entry of a history: ${text.slice(0, 200)}`, { cause });
  }
}
