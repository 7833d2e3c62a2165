import { deltaText, withText } from '../protocol/fold.js';
import type { Frame } from '../protocol/frames.js';
import { MAX_PART_BYTES, type Part } from '../protocol/parts.js';
import type { LiveRun } from '../protocol/runs.js';
import type { ReaderRest } from './replay.js';
import type { RunView } from './run-view.js';
import { chunkFrame, resetFrame, stateFrame } from './run-wire.js';

export interface RestSizes {
  /** Output in the reply to a join, of all runs together, in bytes. */
  replyBytes: number;
  /** Longest text of a delta that is given in pages, in UTF-16 units; no less than a part of a worker can have. */
  textChars: number;
}

export const restSizes: RestSizes = { replyBytes: 256 * 1024, textChars: MAX_PART_BYTES };

/**
 * Where a reader stands in a run's output. What was folded has fewer parts than numbers, so places are counted in
 * both: the next part has number `n`, and is what follows `at` UTF-16 units of folded part `part`; {@link WHOLE} where
 * nothing of it was given, which an empty delta makes another thing than all of it.
 */
interface Place {
  readonly view: RunView;
  resets: number;
  told: number;
  n: number;
  part: number;
  at: number;
  /** Bytes that are in memory for readers such as this only, because the run is over. */
  kept: number;
}

const WHOLE = -1;

/**
 * What one reader still lacks of the runs of a room, from its join until it reads live. It holds places in the runs'
 * own output, never a copy, so a reader may take as long as it wants.
 *
 * Output is given folded, and ends at exactly the number where live chunks begin: the reply says a `next` that leaves
 * as many numbers as parts follow. What is folded meanwhile would take fewer; empty deltas make up for those.
 */
export class RunRest implements ReaderRest {
  behind = false;
  keptBytes = 0;
  readonly #places = new Map<string, Place>();
  readonly #views: () => Iterable<RunView>;
  readonly #sizes: RestSizes;
  readonly #closed: (rest: RunRest) => void;

  /** `views`: the room's live runs, at any time. `closed` is called when the reader needs this no more. */
  constructor(views: () => Iterable<RunView>, sizes: RestSizes, closed: (rest: RunRest) => void) {
    this.#views = views;
    this.#sizes = sizes;
    this.#closed = closed;
  }

  /**
   * The live runs as they stand, with at most about `maxBytes` of output; runs with few parts come first, so that most
   * are whole. To be called once, first.
   */
  begin(maxBytes: number): LiveRun[] {
    const views = [...this.#views()];
    const outputs = new Map<RunView, Part[]>();
    let left = Math.min(this.#sizes.replyBytes, maxBytes);
    for (const view of views.toSorted((a, b) => a.next - b.next)) {
      const place = placeAt(view, view.told);
      const { parts, bytes } = head(view.output, left, place);
      left -= bytes;
      outputs.set(view, parts);
      place.n = view.next - this.#due(place);
      if (place.n < view.next) this.behind = true;
      this.#places.set(view.id, place);
    }
    return views.map((view) => ({
      ...view.run,
      output: outputs.get(view) ?? [],
      next: this.#places.get(view.id)?.n ?? 0,
    }));
  }

  page(maxBytes: number): Frame[] {
    this.#look();
    const frames: Frame[] = [];
    let left = maxBytes;
    for (const place of this.#places.values()) {
      if (left <= 0) break;
      left -= this.#bring(place, left, frames);
    }
    return frames;
  }

  /** The run is over: its output stays in memory for those who lack some of it. */
  ended(view: RunView): void {
    const place = this.#places.get(view.id);
    if (place?.view !== view) return;
    place.kept = view.output.reduce((sum, part) => sum + (deltaText(part) ?? JSON.stringify(part)).length, 0);
    this.keptBytes += place.kept;
  }

  close(): void {
    this.#places.clear();
    this.#closed(this);
  }

  /** Finds runs that began, or that are told anew, and leaves those whose output is void. */
  #look(): void {
    for (const { view } of this.#places.values()) if (view.lost) this.#places.delete(view.id);
    for (const view of this.#views()) {
      if (this.#places.get(view.id)?.view !== view) this.#places.set(view.id, placeAt(view, -1));
    }
  }

  /** @returns the bytes of output that it added to `frames`. */
  #bring(place: Place, maxBytes: number, frames: Frame[]): number {
    const { view } = place;
    const { room } = view.run;
    if (view.resets !== place.resets) {
      frames.push(resetFrame(room, view.id, view.attempt, view.resetReason));
      Object.assign(place, placeAt(view, -1), { kept: place.kept });
    }
    if (view.told > place.told) {
      place.told = view.told;
      frames.push(stateFrame(view.run));
    }
    const { n } = place;
    const { texts, bytes } = this.#take(place, maxBytes);
    if (texts.length > 0) frames.push(chunkFrame(room, view.id, view.attempt, n, texts));
    if (view.ended && place.n === view.next) {
      frames.push(stateFrame(view.ended));
      this.#places.delete(view.id);
      this.keptBytes -= place.kept;
    }
    return bytes;
  }

  /** The next parts as JSON texts, at least one where any are due. Moves the place. */
  #take(place: Place, maxBytes: number): { texts: string[]; bytes: number } {
    const { next, output } = place.view;
    const texts: string[] = [];
    let bytes = 0;
    if (place.n === next) return { texts, bytes };
    let spare = next - place.n - this.#due(place);
    const add = (part: Part) => {
      const text = JSON.stringify(part);
      bytes += Buffer.byteLength(text);
      texts.push(text);
      place.n += 1;
    };
    while (bytes < maxBytes && place.n < next) {
      const part = output[place.part];
      if (!part) break;
      const text = deltaText(part);
      if (text === undefined) {
        add(part);
        place.part += 1;
      } else if (place.at < text.length) {
        const end = this.#endOf(text, place.at);
        add(withText(part, text.slice(Math.max(0, place.at), end)));
        place.at = end;
      } else if (spare > 0) {
        add(withText(part, ''));
        spare -= 1;
      } else {
        place.part += 1;
        place.at = WHOLE;
      }
    }
    return { texts, bytes };
  }

  /** How many parts what follows a place is given in. Never more than it has numbers: see {@link RestSizes.textChars}. */
  #due({ view, part, at }: Place): number {
    let due = 0;
    let from = at;
    for (const folded of view.output.slice(part)) {
      const text = deltaText(folded);
      if (text === undefined) due += 1;
      else for (; from < text.length; from = this.#endOf(text, from)) due += 1;
      from = WHOLE;
    }
    return due;
  }

  /** Where the piece of a text ends of which `from` units were given. */
  #endOf(text: string, from: number): number {
    return cutAt(text, Math.max(0, from) + this.#sizes.textChars);
  }
}

const placeAt = (view: RunView, told: number): Place => ({
  ...{ view, told, resets: view.resets },
  ...{ n: 0, part: 0, at: WHOLE, kept: 0 },
});

/** The end of a text that is cut at `end`, between two characters. */
function cutAt(text: string, end: number): number {
  const last = text.charCodeAt(end - 1);
  const split = end < text.length && last >= 0xd800 && last < 0xdc00;
  return Math.min(text.length, split ? end - 1 : end);
}

/** The first parts of folded output, at most about `maxBytes`; the last may be cut. Moves the place to what follows. */
function head(output: readonly Part[], maxBytes: number, place: Place): { parts: Part[]; bytes: number } {
  const parts: Part[] = [];
  let bytes = 0;
  for (const part of output) {
    const text = deltaText(part);
    const left = maxBytes - bytes;
    const size = text !== undefined && text.length > left ? Number.POSITIVE_INFINITY : sizeOf(part);
    if (size <= left) {
      parts.push(part);
      bytes += size;
      // The last part may still grow.
      if (text === undefined || parts.length < output.length) place.part += 1;
      else place.at = text.length;
      continue;
    }
    if (text === undefined || left < 2) break;
    const wanted = text.slice(0, left);
    const end = cutAt(text, Math.max(2, Math.floor((left * left) / Math.max(left, sizeOf(withText(part, wanted))))));
    parts.push(withText(part, text.slice(0, end)));
    place.at = end;
    return { parts, bytes: maxBytes };
  }
  return { parts, bytes };
}

const sizeOf = (part: Part): number => Buffer.byteLength(JSON.stringify(part));
