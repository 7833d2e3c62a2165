import { Fifo } from '../core/fifo.js';

/**
 * Groups of connections that come, are let in, and go; no tenant is called so. One each, so that of thousands those that were
 * begun are finished before others begin.
 */
export const OPENING = '!opening';
export const ENTERING = '!entering';
export const CLOSING = '!closing';

/** How long work may keep one turn of the loop, in ms, as it comes and again of what waited; one piece is done in any case. */
const TURN_MS = 0.25;
/** Pieces of what waited in one turn, at most. */
const PIECES = 64;

/**
 * Turns of the event loop, dealt out to groups: the commands of one tenant are one, connections that come, enter and
 * go are others.
 * Work is done as it comes for as long as a turn has time; then it waits, in the order of its group, and groups that wait get one
 * piece of work done after another. So a group that comes with thousands at once waits for itself, and nobody else does for long.
 */
export class Turns {
  readonly #queues = new Map<string, Fifo<() => void>>();
  #waiting = 0;
  /** Turns that began to work off what waited. */
  #turn = 0;
  /** When the time of this turn is over: for what comes, once something came, and for what waited. */
  #comesUntil: number | undefined;
  #waitedUntil = 0;
  /** Pieces that will be done in this turn or the next. */
  #scheduled = 0;

  constructor(private readonly now: () => number = () => performance.now()) {}

  /** Pieces of work that wait. */
  waiting(group: string): number {
    return this.#queues.get(group)?.size ?? 0;
  }

  /** All of them. */
  get size(): number {
    return this.#waiting;
  }

  /** Whether work of the group would be done now: none of it waits, and this turn has time left. */
  free(group: string): boolean {
    if (this.#scheduled === 0) this.#schedule();
    return !this.#queues.has(group) && this.#hasTime();
  }

  /** Does the work now where the group is {@link Turns.free}, else in a later turn. It must not throw. */
  add(group: string, work: () => void): void {
    if (this.free(group)) work();
    else this.wait(group, work);
  }

  /** Does the work in a later turn. It must not throw. */
  wait(group: string, work: () => void): void {
    const queue = this.#queues.get(group);
    if (queue) queue.push(work);
    else this.#queues.set(group, new Fifo(work));
    this.#waiting += 1;
    if (this.#scheduled < PIECES) this.#schedule();
  }

  /** Resolves when it is the group's turn; what follows is the work. */
  next(group: string): Promise<void> {
    return new Promise((resolve) => this.add(group, resolve));
  }

  #hasTime(): boolean {
    if (this.#comesUntil !== undefined) return this.now() < this.#comesUntil;
    this.#comesUntil = this.now() + TURN_MS;
    return true;
  }

  /** One immediate for each piece: node runs what a piece left to promises before the next one, so that its time counts too. */
  #schedule(): void {
    this.#scheduled += 1;
    const turn = this.#turn;
    setImmediate(() => this.#run(turn));
  }

  #run(scheduledIn: number): void {
    this.#scheduled -= 1;
    const first = scheduledIn === this.#turn;
    if (first) {
      this.#turn += 1;
      this.#comesUntil = undefined;
      this.#waitedUntil = this.now() + TURN_MS;
    }
    if (first || this.now() < this.#waitedUntil) this.#piece();
    if (this.#waiting > this.#scheduled && this.#scheduled < PIECES) this.#schedule();
  }

  #piece(): void {
    const next = this.#queues.entries().next().value;
    if (!next) return;
    const [group, queue] = next;
    const work = queue.shift();
    // To the end of the line, where there is more; while it works, so that what it adds stays behind.
    this.#queues.delete(group);
    if (queue.size > 0) this.#queues.set(group, queue);
    this.#waiting -= 1;
    work?.();
  }
}
