/*
 * A word n-gram model with backoff: enough to stream text that reads almost like sense, on any machine, without a
 * download. It knows the words of its corpus and nothing else.
 */

const ORDER = 4;
const END = '</s>';
const WORD = /[\p{L}\p{N}]+(?:['’.-][\p{L}\p{N}]+)*|[,;:.!?]/gu;
const STOP = new Set(
  'a an and are as at be by do for from how i in is it me my of on or so tell that the this to us was we what when where which who why will with you your about can does'.split(
    ' ',
  ),
);

/** Numbers in [0, 1) that depend on `seed` alone (mulberry32). */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** FNV-1a over UTF-16 units, 32 bits. */
export function hashText(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

/** Trained once over plain text; the same text, prompt and seed give the same words. */
export class NgramModel {
  /** Context of 1 to ORDER-1 words, joined by a space, to the words that followed it, as often as they did. */
  readonly #next = new Map<string, string[]>();
  readonly #sentences: string[][] = [];

  constructor(text: string) {
    for (const sentence of sentencesOf(text)) this.#learn(sentence);
    if (this.#sentences.length === 0) throw new RangeError('an n-gram model needs at least one sentence');
  }

  /** How many sentences it was trained on. */
  get sentences(): number {
    return this.#sentences.length;
  }

  /**
   * Tokens of an answer, each with the space or mark before it, so that they are to be joined as they are. It ends
   * with a sentence, after `minTokens` and before about `maxTokens`.
   */
  *generate(prompt: string, seed: number, minTokens = 60, maxTokens = 150): Generator<string, void> {
    const random = seededRandom(seed);
    const topic = new Set(
      wordsOf(prompt)
        .map(fold)
        .filter((word) => word.length > 2 && !STOP.has(word)),
    );
    const used = new Set<string>();
    const said = new Set<string>();
    for (let count = 0; count < minTokens; ) {
      const tokens = this.#unsaid(said, topic, used, random);
      for (const token of tokens) {
        yield count === 0 ? token.trimStart() : token;
        if (++count < maxTokens) continue;
        if (!/[.!?]/.test(token)) yield '.';
        return;
      }
    }
  }

  /** A sentence that was not said yet, if a few tries find one. */
  #unsaid(said: Set<string>, topic: Set<string>, used: Set<string>, random: () => number): string[] {
    let tokens: string[] = [];
    for (let tries = 0; tries < 8; tries++) {
      tokens = [...this.#sentence(this.#begin(topic, used, random), topic, random)];
      if (tokens.length > 5 && !said.has(tokens.join(''))) break;
    }
    said.add(tokens.join(''));
    return tokens;
  }

  *#sentence(start: string[], topic: Set<string>, random: () => number): Generator<string> {
    const words = [...start];
    for (const word of start) yield spaced(word);
    for (let length = start.length; length < 45; length++) {
      const next = this.#choose(words, topic, random, length);
      if (next === END) break;
      words.push(next);
      yield spaced(next);
    }
    if (!/[.!?]$/.test(words.at(-1) ?? '')) yield '.';
  }

  /** Longest context first; a context that knows one way on is left now and then, so that sentences cross. */
  #choose(words: string[], topic: Set<string>, random: () => number, length: number): string {
    for (let size = ORDER - 1; size >= 1; size--) {
      const known = this.#next.get(words.slice(-size).join(' '));
      if (!known) continue;
      const distinct = new Set(known).size;
      if (size === ORDER - 1 && distinct === 1 && length > 4 && random() < 0.15) continue;
      const wanted = known.filter((word) => topic.has(fold(word)));
      const pool = wanted.length > 0 && random() < 0.7 ? wanted : known;
      return pool[Math.floor(random() * pool.length)] ?? END;
    }
    return END;
  }

  /** The first three words of a sentence that has to do with the topic, or of any. */
  #begin(topic: Set<string>, used: Set<string>, random: () => number): string[] {
    let best: string[] = [];
    let bestScore = -1;
    for (const sentence of this.#sentences) {
      if (used.has(sentence.slice(0, 4).join(' '))) continue;
      const hits = new Set(sentence.map(fold).filter((word) => topic.has(word))).size;
      const score = hits * 2 + random() * 1.5;
      if (score > bestScore) [best, bestScore] = [sentence, score];
    }
    if (best.length === 0) used.clear();
    used.add(best.slice(0, 4).join(' '));
    return (best.length === 0 ? (this.#sentences[0] ?? []) : best).slice(0, 3);
  }

  #learn(sentence: string[]): void {
    this.#sentences.push(sentence);
    const words = [...sentence, END];
    for (let i = 1; i < words.length; i++) {
      for (let size = 1; size < ORDER && size <= i; size++) {
        const context = words.slice(i - size, i).join(' ');
        const known = this.#next.get(context);
        if (known) known.push(words[i] ?? END);
        else this.#next.set(context, [words[i] ?? END]);
      }
    }
  }
}

const fold = (word: string): string => word.toLowerCase().replace(/(?:es|s)$/, '');
const wordsOf = (text: string): string[] => text.match(WORD) ?? [];
const spaced = (word: string): string => (/^[,;:.!?]$/.test(word) ? word : ` ${word}`);

/** Sentences of 6 to 45 words that begin with a capital letter; everything that looks like code or a table is left out. */
function sentencesOf(text: string): string[][] {
  const sentences: string[][] = [];
  for (const paragraph of text.split(/\n\s*\n/)) {
    for (const raw of paragraph.replace(/\s+/g, ' ').split(/(?<=[.!?])\s+(?=\p{Lu})/u)) {
      const sentence = raw.trim();
      if (!/^\p{Lu}\p{L}*[\s,]/u.test(sentence) || !/[.!?]$/.test(sentence) || /[{}<>=|`@[\]*_/\\()"…→]/.test(sentence))
        continue;
      const words = wordsOf(sentence);
      if (words.length >= 6 && words.length <= 45) sentences.push(words);
    }
  }
  return sentences;
}
