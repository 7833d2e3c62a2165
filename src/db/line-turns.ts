import { TuttiError } from '../errors.js';
import type { Line } from './line.js';

export interface TurnLimits {
  /** Transactions waiting for a line before further ones are refused with `overloaded`. */
  waitingMax: number;
  /** Longest wait for a line, in ms. */
  timeoutMs: number;
}

/** Who takes a line for work of the gateway itself, or of several tenants at a time. */
export const GATEWAY = '*';

/** Part of the queue one tenant may fill, as of the lines it may hold: the rest is there for the others. */
const TENANT_SHARE = 0.75;
const RETRY_MIN_MS = 100;
const RETRY_MAX_MS = 5000;

interface Waiting {
  readonly timer: NodeJS.Timeout;
  give(line: Line): void;
}

/**
 * The lines of a pool, given out to tenants in turn. A tenant never holds all of them, and never fills the whole queue:
 * however slow its own transactions are, another's begins at once or after a transaction that is no tenant's flood.
 */
export class LineTurns {
  readonly #idle: Line[];
  readonly #lines: number;
  readonly #limits: TurnLimits;
  readonly #held = new Map<string, number>();
  /** Who waits; the first is served next, if it holds less than its share. */
  readonly #queues = new Map<string, Set<Waiting>>();
  #waiting = 0;
  /** How long a line is held, in ms; of the last some dozen. */
  #holdMs = 10;

  constructor(lines: readonly Line[], limits: TurnLimits) {
    this.#idle = [...lines];
    this.#lines = lines.length;
    this.#limits = limits;
  }

  get waiting(): number {
    return this.#waiting;
  }

  get busy(): number {
    return this.#lines - this.#idle.length;
  }

  /**
   * A line, and the call that gives it back.
   * @throws TuttiError `overloaded` where too many wait, `log_unavailable` after the longest wait.
   */
  async take(owner: string): Promise<{ line: Line; done: () => void }> {
    const line = this.#may(owner) ? this.#idle.pop() : undefined;
    if (line) {
      this.#count(owner, 1);
      return this.#lease(owner, line);
    }
    return this.#lease(owner, await this.#wait(owner));
  }

  #lease(owner: string, line: Line): { line: Line; done: () => void } {
    const since = performance.now();
    return {
      line,
      done: () => {
        this.#holdMs += (performance.now() - since - this.#holdMs) / 32;
        this.#count(owner, -1);
        this.#idle.push(line);
        this.#serve();
      },
    };
  }

  #wait(owner: string): Promise<Line> {
    const { waitingMax, timeoutMs } = this.#limits;
    const queue = this.#queues.get(owner) ?? new Set();
    const ownMax = owner === GATEWAY ? waitingMax : Math.ceil(waitingMax * TENANT_SHARE);
    if (this.#waiting >= waitingMax || queue.size >= ownMax) {
      throw new TuttiError('overloaded', 'Too many requests wait for the database; try again later.', {
        retryAfterMs: this.#expectedWaitMs(),
        limit: 'database_queue',
      });
    }
    this.#queues.set(owner, queue);
    return new Promise((resolve, reject) => {
      const waiting: Waiting = {
        give: resolve,
        timer: setTimeout(() => {
          this.#leave(owner, queue, waiting);
          const retryAfterMs = this.#expectedWaitMs();
          const message = 'All connections to the database are busy.';
          reject(new TuttiError('log_unavailable', message, { retryAfterMs, limit: 'database_wait' }));
        }, timeoutMs),
      };
      queue.add(waiting);
      this.#waiting += 1;
    });
  }

  #leave(owner: string, queue: Set<Waiting>, waiting: Waiting): void {
    clearTimeout(waiting.timer);
    queue.delete(waiting);
    this.#waiting -= 1;
    if (queue.size === 0) this.#queues.delete(owner);
  }

  #serve(): void {
    for (const [owner, queue] of this.#queues) {
      if (!this.#may(owner)) continue;
      const [waiting] = queue;
      const line = waiting && this.#idle.pop();
      if (!line) return;
      // To the end of the turn.
      this.#queues.delete(owner);
      this.#queues.set(owner, queue);
      this.#leave(owner, queue, waiting);
      this.#count(owner, 1);
      waiting.give(line);
      return;
    }
  }

  #may(owner: string): boolean {
    const share = this.#lines - Math.max(1, Math.floor(this.#lines * (1 - TENANT_SHARE)));
    return owner === GATEWAY || (this.#held.get(owner) ?? 0) < share;
  }

  #count(owner: string, by: 1 | -1): void {
    const held = (this.#held.get(owner) ?? 0) + by;
    if (held === 0) this.#held.delete(owner);
    else this.#held.set(owner, held);
  }

  #expectedWaitMs(): number {
    const expected = Math.ceil((this.#waiting / this.#lines) * this.#holdMs);
    return Math.min(RETRY_MAX_MS, Math.max(RETRY_MIN_MS, expected));
  }
}
