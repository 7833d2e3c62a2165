import type { Clock } from './clock.js';

const RETRY_FIRST_MS = 250;
const RETRY_MAX_MS = 2000;
/** For how long a reader is kept whose next page cannot be read, in ms. */
const RETRY_FOR_MS = 30_000;

/** How often and for how long a page that could not be read is asked for again. */
export class ReadRetries {
  readonly #clock: Clock;
  #since: number | undefined;
  #pauseMs = RETRY_FIRST_MS;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** The page could be read. */
  reset(): void {
    this.#since = undefined;
    this.#pauseMs = RETRY_FIRST_MS;
  }

  /** @returns after the pause that is due `true`; `false` at once where it was tried for long enough. */
  async next(): Promise<boolean> {
    const now = this.#clock.monotonic();
    this.#since ??= now;
    if (now - this.#since >= RETRY_FOR_MS) return false;
    const pauseMs = this.#pauseMs;
    this.#pauseMs = Math.min(RETRY_MAX_MS, pauseMs * 2);
    await new Promise<void>((resolve) => this.#clock.after(pauseMs, resolve));
    return true;
  }
}
