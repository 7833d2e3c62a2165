import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** What the model can say where nothing of the repository is at hand. */
const BASE = `
A room is a place where people and models work together, and everything that was said in it is kept in one order.
Every event of a room has a number, and the numbers follow each other without a gap. When a reader comes back after a
lost connection, it tells the last number it has seen and gets exactly what it missed. Nothing is sent twice, and nothing
is left out. An event is stored before it is announced, so a message that was acknowledged survives the loss of any
server. The database is the truth, and everything else is a hint about it. A message that was sent again after a lost
answer is stored once, because the client gave it a name before it was sent for the first time.

An answer of a model is streamed to everybody in the room as it is written. A reader who joins in the middle gets the
part so far and then every token as it arrives. When the worker is lost, another worker takes the run, and the readers
are told to forget the first attempt. Stop is explicit, and closing a page never stops an answer that others may be
reading. A worker claims a run for a limited time and keeps what it wrote until the server has committed it. The fence is
a number that grows with every claim, and a worker that comes back too late can't write any more.

A gateway holds the connections of its readers and the newest events of their rooms. Several gateways share one database
and tell each other about new events over a bus that may lose, repeat or reorder them. Each gateway puts the events of a
room back in order before it sends them to its readers. A gap is noticed at once and filled from the log. Even a lost last
announcement is found, because every gateway compares its heads with the log once in a second. A slow reader costs a
bounded amount of memory and slows nobody down.

People notice small delays, and they notice lost words even more. A good system is quiet when things go wrong: it waits,
it tries again, and it tells the truth about what it knows. The best way to keep a promise is to make few of them and to
test each one. When two people write at the same time, both of their messages are kept, and everybody sees them in the
same order. Offline is an ordinary state, and a page should let people go on typing while the network is away. Simple
parts that fail in simple ways are easier to live with than clever parts that never seem to fail.

Music is made of parts that wait for each other. When everyone plays together, the conductor calls it a tutti. An
orchestra keeps time without a clock, because each player listens to the others and knows the score. A conversation works
in the same way, with one order that everybody shares and a place for each voice. The quiet passages are where you hear
whether the players are together.
`;

const MAX_BYTES = 2 * 1024 * 1024;

/**
 * Plain text to train the demo model on: the README, the documentation and the doc comments of this repository, as far
 * as they are there, and a base of its own.
 */
export function readCorpus(root: string = repositoryRoot()): string {
  // Said twice, it outweighs terse comments.
  const texts = [BASE, BASE];
  let left = MAX_BYTES;
  for (const file of [
    join(root, 'README.md'),
    ...filesUnder(join(root, 'docs'), '.md'),
    ...filesUnder(join(root, 'src'), '.ts'),
  ]) {
    if (left <= 0) break;
    const text = read(file);
    left -= text.length;
    texts.push(file.endsWith('.md') ? proseOf(text) : commentsOf(text));
  }
  return texts.join('\n\n');
}

/** This file lies in `src/demo` or, built, in `dist/demo`. */
const repositoryRoot = (): string => join(dirname(fileURLToPath(import.meta.url)), '..', '..');

function filesUnder(folder: string, suffix: string): string[] {
  try {
    return readdirSync(folder, { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith(suffix))
      .sort()
      .map((name) => join(folder, name));
  } catch {
    return [];
  }
}

function read(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}

/** Markdown without code, tables, headings, and with list items as paragraphs of their own. */
function proseOf(markdown: string): string {
  return markdown
    .replace(/^```[\s\S]*?^```/gm, '')
    .replace(/^(?:\||#|<|import |---).*$/gm, '\n')
    .replace(/^\s*(?:[-*]|\d+\.)\s+/gm, '\n\n')
    .replace(/\[([^\]]*)\]\([^)]*\)/g, '$1')
    .replace(/\*\*|__/g, '');
}

/** Comments are full of half sentences; these begin the whole ones. */
const WHOLE =
  /^(?:A|An|Any|The|This|That|These|Those|Each|Every|Everything|It|If|When|Where|One|Nothing|Nobody|Only|Several|What) /;

const VERB =
  / (?:is|are|was|were|has|have|gets?|makes?|may|must|can|will|does|goes|comes?|ends?|keeps?|sends?|tells?) /;

/** The whole sentences in the doc comments of a source file. */
function commentsOf(source: string): string {
  const comments = source.match(/\/\*\*?[\s\S]*?\*\//g) ?? [];
  return comments
    .map((comment) => comment.replace(/^\s*\/?\*+\/?|\*\/$/gm, ' ').replace(/@\w+[^\n]*/g, ''))
    .flatMap((comment) => comment.replace(/\s+/g, ' ').split(/(?<=[.!?]) (?=[A-Z])/))
    .map((sentence) => sentence.trim())
    .filter((sentence) => WHOLE.test(sentence) && VERB.test(sentence) && !/[;:]/.test(sentence))
    .join('\n\n');
}
