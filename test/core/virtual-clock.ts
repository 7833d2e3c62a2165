import type { Clock } from '../../src/core/clock.js';

interface Timer {
  at: number;
  order: number;
  fn: (() => void) | undefined;
}

const earlier = (a: Timer, b: Timer): boolean => a.at < b.at || (a.at === b.at && a.order < b.order);

/** Time that moves only when told to; between two timers all promises settle. */
export class VirtualClock implements Clock {
  #now = 0;
  #order = 0;
  /** A binary heap, the earliest first. */
  readonly #timers: Timer[] = [];

  now(): number {
    return this.#now;
  }

  monotonic(): number {
    return this.#now;
  }

  after(ms: number, fn: () => void): () => void {
    const timer: Timer = { at: this.#now + ms, order: this.#order++, fn };
    this.#push(timer);
    return () => {
      timer.fn = undefined;
    };
  }

  soon(fn: () => void): void {
    this.after(0, fn);
  }

  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.after(ms, resolve));
  }

  async run(ms: number): Promise<void> {
    const end = this.#now + ms;
    await settle();
    for (let next = this.#timers[0]; next && next.at <= end; next = this.#timers[0]) {
      this.#pop();
      if (!next.fn) continue;
      this.#now = next.at;
      next.fn();
      await settle();
    }
    this.#now = end;
  }

  #push(timer: Timer): void {
    const heap = this.#timers;
    let i = heap.length;
    heap.push(timer);
    while (i > 0) {
      const parent = (i - 1) >> 1;
      const above = heap[parent];
      if (!above || earlier(above, timer)) break;
      heap[i] = above;
      i = parent;
    }
    heap[i] = timer;
  }

  #pop(): void {
    const heap = this.#timers;
    const last = heap.pop();
    if (!last || heap.length === 0) return;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      const [left, right] = [heap[child], heap[child + 1]];
      if (!left) break;
      if (right && earlier(right, left)) child += 1;
      const least = heap[child];
      if (!least || earlier(last, least)) break;
      heap[i] = least;
      i = child;
    }
    heap[i] = last;
  }
}

/** Time of one gateway: once it is killed nothing that it waits for ever happens. It may stand still, and be set wrong. */
export class MortalClock implements Clock {
  alive = true;
  /** Called at each crossing, before it: the gateway may be killed there. */
  onCrossing: () => void = () => {};
  /** Nothing happens before this moment of the world; what was due meanwhile happens then, in order. */
  frozenUntil = 0;

  constructor(
    readonly world: VirtualClock,
    /** How far the wall clock is off, in ms. */
    readonly off = 0,
  ) {}

  /**
   * A crossing between the gateway and the world: it calls a port, or a port answers it. What a dead gateway still does
   * within the same turn of its loop reaches nobody.
   * @returns whether it is alive to do so.
   */
  crosses(): boolean {
    if (this.alive) this.onCrossing();
    return this.alive;
  }

  now(): number {
    return this.world.now() + this.off;
  }

  monotonic(): number {
    return this.world.now();
  }

  after(ms: number, fn: () => void): () => void {
    let open = true;
    const due = () => {
      if (!this.alive || !open) return;
      const wait = this.frozenUntil - this.world.now();
      if (wait > 0) this.world.after(wait, due);
      else fn();
    };
    const cancel = this.world.after(ms, due);
    return () => {
      open = false;
      cancel();
    };
  }

  soon(fn: () => void): void {
    this.after(0, fn);
  }
}

/** Every promise that can settle without time passing has settled then: ticks come when no microtask is left. */
const settle = (): Promise<void> => new Promise((done) => process.nextTick(done));
