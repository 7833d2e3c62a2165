import { firstAtLeast } from './published.js';

/** Times from `at` to `healed`, merged where they overlap. Times are µs. */
export class Spans {
  /** Ascending and apart, as are {@link Spans.ends}. */
  readonly #starts: number[] = [];
  readonly #ends: number[] = [];
  /** Length of all such times before each of them. */
  readonly #before: number[] = [];

  /** `all` ascend by `at`. */
  constructor(all: Iterable<{ at: number; healed: number }>) {
    let total = 0;
    for (const { at, healed } of all) {
      const last = this.#ends.length - 1;
      const end = this.#ends[last];
      if (end !== undefined && at <= end) {
        this.#ends[last] = Math.max(end, healed);
        continue;
      }
      if (end !== undefined) total += end - (this.#starts[last] ?? end);
      this.#starts.push(at);
      this.#ends.push(healed);
      this.#before.push(total);
    }
  }

  get ends(): readonly number[] {
    return this.#ends;
  }

  /** µs outside of all spans from `from` to `to`. */
  outside(from: number, to: number): number {
    return to - from - (this.#inside(to) - this.#inside(from));
  }

  /** Whether one is on at `t`, was within `after` µs before, or will be within `before` µs. */
  touches(t: number, before: number, after: number): boolean {
    const next = firstAtLeast(this.#ends, t - after);
    const start = this.#starts[next];
    return start !== undefined && start <= t + before;
  }

  #inside(t: number): number {
    const next = firstAtLeast(this.#starts, t);
    if (next === 0) return 0;
    const last = next - 1;
    return (this.#before[last] ?? 0) + Math.min(t, this.#ends[last] ?? t) - (this.#starts[last] ?? t);
  }
}
