import { totalmem } from 'node:os';
import { getHeapStatistics } from 'node:v8';
import { TuttiError } from '../errors.js';

/** How long a look at the memory holds, in ms. */
const LOOK_MS = 250;
const RETRY_AFTER_MS = 2000;

/**
 * The part of its memory this process uses, 0 to 1 and more: of the JavaScript heap, or of the machine or container,
 * whichever is fuller.
 */
export function memoryShare(): number {
  const heap = getHeapStatistics();
  const available = Math.min(process.constrainedMemory() || Number.POSITIVE_INFINITY, totalmem());
  const resident = process.memoryUsage.rss() / available;
  return Math.max(heap.used_heap_size / heap.heap_size_limit, resident);
}

/**
 * The last bound, behind all others: while memory runs short nobody new is let in, neither sessions nor readers of rooms,
 * so that those who are there can be served to the end. A gateway that falls over would lose them all.
 */
export class MemoryGuard {
  #share = 0;
  #lookedAt = Number.NEGATIVE_INFINITY;

  /** @param max part of the memory in use from which on newcomers are refused, 0 to 1 */
  constructor(
    private readonly max: number,
    private readonly look: () => number = memoryShare,
    private readonly now: () => number = () => performance.now(),
  ) {}

  get share(): number {
    if (this.now() - this.#lookedAt >= LOOK_MS) {
      this.#share = this.look();
      this.#lookedAt = this.now();
    }
    return this.#share;
  }

  /** @throws TuttiError `overloaded` while memory runs short */
  check(): void {
    if (this.share < this.max) return;
    throw new TuttiError('overloaded', 'This gateway runs short of memory; try another, or later.', {
      retryAfterMs: RETRY_AFTER_MS,
      limit: 'memory',
    });
  }
}
