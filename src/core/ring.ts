import type { Frame } from '../protocol/frames.js';

/** The recent events of one room as ready frames: consecutive seqs, bounded by size. */
export class Ring {
  readonly #maxBytes: number;
  #frames: Frame[] = [];
  /** Index of the oldest frame kept; what is before it was dropped. */
  #start = 0;
  #first = 1;
  #bytes = 0;

  /** @param maxBytes most characters of frames kept; a frame larger than that is not kept at all. */
  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  /** Seq of the oldest frame kept; `last + 1` when the ring is empty. */
  get first(): number {
    return this.#first;
  }

  get bytes(): number {
    return this.#bytes;
  }

  get size(): number {
    return this.#frames.length - this.#start;
  }

  /** Forgets everything; the next frame pushed has number `seq`. */
  reset(seq: number): void {
    this.#frames = [];
    this.#start = 0;
    this.#first = seq;
    this.#bytes = 0;
  }

  /** Appends the frame that follows the last one. */
  push(frame: Frame): void {
    this.#frames.push(frame);
    this.#bytes += frame.length;
    while (this.#bytes > this.#maxBytes) this.#dropOldest();
  }

  /** Puts older frames in front; the last of them has number `first - 1`. Stops where the ring is full. */
  prepend(frames: readonly Frame[]): void {
    let room = this.#maxBytes - this.#bytes;
    let from = frames.length;
    while (from > 0) {
      const length = frames[from - 1]?.length ?? 0;
      if (length > room) break;
      room -= length;
      from -= 1;
    }
    const kept = frames.slice(from);
    this.#frames = [...kept, ...this.#frames.slice(this.#start)];
    this.#start = 0;
    this.#first -= kept.length;
    this.#bytes = this.#maxBytes - room;
  }

  /**
   * Frames after `seq`, oldest first, until `maxBytes` are reached (at least one).
   * @returns `undefined` where the ring does not reach back to `seq + 1`.
   */
  after(seq: number, maxBytes: number): Frame[] | undefined {
    if (seq + 1 < this.#first) return undefined;
    const page: Frame[] = [];
    let bytes = 0;
    for (let i = this.#start + (seq + 1 - this.#first); i < this.#frames.length && bytes < maxBytes; i += 1) {
      const frame = this.#frames[i];
      if (frame === undefined) break;
      page.push(frame);
      bytes += frame.length;
    }
    return page;
  }

  #dropOldest(): void {
    this.#bytes -= this.#frames[this.#start]?.length ?? 0;
    this.#frames[this.#start] = '' as Frame;
    this.#start += 1;
    this.#first += 1;
    if (this.#start > 64 && this.#start * 2 > this.#frames.length) {
      this.#frames = this.#frames.slice(this.#start);
      this.#start = 0;
    }
  }
}
