import { Fifo } from '../core/fifo.js';

/** How long what waited may keep the loop in one turn, in ms; one piece of work is done in any case. */
const TURN_MS = 2;

/**
 * Turns of the event loop, dealt out to groups: the commands of one tenant are one, handshakes are another. What a group wants
 * beyond its share of a turn waits, in order; of those that wait, each gets one piece of work done after another. So a group that
 * comes with thousands at once waits for itself, and nobody else does for long.
 */
export class Turns {
  readonly #queues = new Map<string, Fifo<() => void>>();
  /** Work done at once in this turn, by group. */
  readonly #used = new Map<string, number>();
  #scheduled = false;

  /** Pieces of work that wait. */
  waiting(group: string): number {
    return this.#queues.get(group)?.size ?? 0;
  }

  /** All of them. */
  get size(): number {
    let size = 0;
    for (const queue of this.#queues.values()) size += queue.size;
    return size;
  }

  /** Does the work now, where the group had less than `atOnce` in this turn, else in a later one. It must not throw. */
  add(group: string, work: () => void, atOnce = 0): void {
    if (!this.#scheduled) {
      this.#scheduled = true;
      setImmediate(() => this.#turn());
    }
    const queue = this.#queues.get(group);
    if (queue) {
      queue.push(work);
      return;
    }
    const used = this.#used.get(group) ?? 0;
    if (used >= atOnce) {
      this.#queues.set(group, new Fifo(work));
      return;
    }
    this.#used.set(group, used + 1);
    work();
  }

  #turn(): void {
    this.#used.clear();
    const until = performance.now() + TURN_MS;
    do {
      const next = this.#queues.entries().next().value;
      if (!next) break;
      const [group, queue] = next;
      const work = queue.shift();
      // To the end of the line, where there is more; while it works, so that what it adds stays behind.
      this.#queues.delete(group);
      if (queue.size > 0) this.#queues.set(group, queue);
      work?.();
    } while (performance.now() < until);
    this.#scheduled = this.#queues.size > 0;
    if (this.#scheduled) setImmediate(() => this.#turn());
  }
}
