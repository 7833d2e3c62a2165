import type { Link } from './link.js';

/** Least time between two looks, in ms, and how many times its own duration a look has to wait. */
const PAUSE_MS = 10;
const PAUSE_FACTOR = 20;

/**
 * uWebSockets.js cuts a slow reader without saying that this was why, and tells nothing about a socket it cut. So
 * the bytes that wait are looked at beforehand, whenever enough was published for a reader to have fallen behind.
 * Looking takes at most a twentieth of the time.
 */
export class Backlog {
  #published = 0;
  #notBefore = 0;
  #scheduled = false;

  constructor(
    private readonly links: ReadonlySet<Link>,
    private readonly everyBytes: number,
  ) {}

  /** `bytes` went to some topic. */
  add(bytes: number): void {
    this.#published += bytes;
    if (this.#published < this.everyBytes || this.#scheduled) return;
    this.#scheduled = true;
    // After this turn of the loop, when uWebSockets.js has written what was published.
    setImmediate(() => this.#look());
  }

  #look(): void {
    this.#scheduled = false;
    const start = performance.now();
    if (start < this.#notBefore) return;
    this.#published = 0;
    for (const link of this.links) link.sample();
    this.#notBefore = performance.now() + PAUSE_MS + PAUSE_FACTOR * (performance.now() - start);
  }
}
