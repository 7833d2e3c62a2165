/** How long the loop is kept from everything else in one turn, in ms; one piece of work is done in any case. */
const TURN_MS = 1;

/**
 * Work that may wait, done in the order it came and a little in each turn of the loop, so that thousands who come at once
 * slow down each other and nobody else.
 */
export class Pace {
  #waiting: (() => void)[] = [];
  #next = 0;
  #scheduled = false;

  get size(): number {
    return this.#waiting.length - this.#next;
  }

  /** Does the work in a later turn of the loop. It must not throw. */
  add(work: () => void): void {
    this.#waiting.push(work);
    this.#schedule();
  }

  #schedule(): void {
    if (this.#scheduled || this.size === 0) return;
    this.#scheduled = true;
    setImmediate(() => this.#turn());
  }

  #turn(): void {
    this.#scheduled = false;
    const until = performance.now() + TURN_MS;
    do this.#waiting[this.#next++]?.();
    while (this.size > 0 && performance.now() < until);
    // Not `shift`, which moves thousands for each of thousands.
    if (this.#next > 1000 || this.size === 0) {
      this.#waiting = this.#waiting.slice(this.#next);
      this.#next = 0;
    }
    this.#schedule();
  }
}
