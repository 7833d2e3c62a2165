import type { Link } from './link.js';

/** What is looked at of a link. */
type Looked = Pick<Link, 'waiting' | 'publishedThen' | 'sample'>;

/** Least time between two looks, in ms, and how many times its own duration a look has to wait. */
const PAUSE_MS = 10;
const PAUSE_FACTOR = 20;
/** Looks while as much is published as a socket may have waiting, and those of them that wait for {@link PAUSE_MS} alone. */
const LOOKS = 8;
const LOOKS_DUE = 2;

/**
 * uWebSockets.js cuts a slow reader without saying that this was why, and tells nothing about a socket it cut. So
 * the bytes that wait are looked at beforehand, whenever enough was published for a reader to have fallen behind.
 * Looking takes at most a twentieth of the time, unless a reader of whom nothing waited could be cut before the next look: a look
 * that took long, because the machine was busy, must not put off the next one for as long as that.
 */
export class Backlog {
  /** Bytes published in all, and then when the links were looked at last. */
  #published = 0;
  #lookedAt = 0;
  /** Ends of the two pauses, by the monotonic clock. */
  #dueNotBefore = 0;
  #notBefore = 0;
  #scheduled = false;

  constructor(
    private readonly links: ReadonlySet<Looked>,
    private readonly maxBytes: number,
  ) {}

  /** `bytes` went to some topic. */
  add(bytes: number): void {
    this.#published += bytes;
    if (this.#published - this.#lookedAt < this.maxBytes / LOOKS || this.#scheduled) return;
    this.#scheduled = true;
    // After this turn of the loop, when uWebSockets.js has written what was published.
    setImmediate(() => this.#look());
  }

  /** Whether a link that was cut read too slowly: much waited for it, or enough was published since to fill its buffer. */
  cut({ waiting, publishedThen }: Looked): boolean {
    const since = publishedThen === undefined ? 0 : this.#published - publishedThen;
    return waiting > this.maxBytes / 4 || waiting + since > this.maxBytes;
  }

  #look(): void {
    this.#scheduled = false;
    const start = performance.now();
    const due = this.#published - this.#lookedAt >= this.maxBytes / LOOKS_DUE;
    if (start < (due ? this.#dueNotBefore : this.#notBefore)) return;
    this.#lookedAt = this.#published;
    for (const link of this.links) {
      link.sample();
      link.publishedThen = this.#published;
    }
    const end = performance.now();
    this.#dueNotBefore = end + PAUSE_MS;
    this.#notBefore = end + PAUSE_MS + PAUSE_FACTOR * (end - start);
  }
}
