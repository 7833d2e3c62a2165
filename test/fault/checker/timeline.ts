/** When a history began and ended, and what happened in each of its seconds. Times are µs of the monotonic clock. */
export class Timeline {
  from = Number.POSITIVE_INFINITY;
  to = 0;
  readonly #acked = new Map<number, number>();
  readonly #delivered = new Map<number, number>();

  see(t: number): void {
    if (t < this.from) this.from = t;
    if (t > this.to) this.to = t;
  }

  acked(t: number): void {
    this.see(t);
    add(this.#acked, t, 1);
  }

  delivered(t: number, events: number): void {
    this.see(t);
    add(this.#delivered, t, events);
  }

  /** Second 0 is the one of the first entry. */
  seconds(): { acked: number[]; delivered: number[] } {
    const first = Math.floor(Math.min(this.from, this.to) / 1e6);
    const length = Math.floor(this.to / 1e6) - first + 1;
    const series = (of: Map<number, number>) => Array.from({ length }, (_, i) => of.get(first + i) ?? 0);
    return { acked: series(this.#acked), delivered: series(this.#delivered) };
  }
}

function add(seconds: Map<number, number>, t: number, count: number): void {
  const second = Math.floor(t / 1e6);
  seconds.set(second, (seconds.get(second) ?? 0) + count);
}
