import type { EntryOf } from './entries.js';
import { firstAtLeast } from './published.js';

export interface Fault {
  readonly id: number;
  readonly kind: string;
  readonly target: string;
  readonly at: number;
  /** µs; a fault without a heal is healed as it happens. */
  healed: number;
}

/** A moment from which recovery is measured: of one fault, or of a cluster of faults that overlap (its last heal). */
export interface Mark {
  readonly t: number;
  readonly fault: Fault | undefined;
}

/** When faults were active. Ask after {@link Faults.settle}. */
export class Faults {
  readonly all: Fault[] = [];
  readonly #byId = new Map<number, Fault>();
  /** Starts and ends of the times with at least one active fault, ascending and apart. */
  #starts: number[] = [];
  #ends: number[] = [];
  /** Length of all such times before each of them, µs. */
  #before: number[] = [];

  fault([, t, id, kind, target]: EntryOf<'fault'>): void {
    const fault = { id, kind, target, at: t, healed: t };
    this.all.push(fault);
    this.#byId.set(id, fault);
  }

  heal([, t, id]: EntryOf<'heal'>): void {
    const fault = this.#byId.get(id);
    if (fault) fault.healed = Math.max(fault.at, t);
  }

  settle(): void {
    this.all.sort((a, b) => a.at - b.at);
    let faulty = 0;
    for (const { at, healed } of this.all) {
      const last = this.#ends.length - 1;
      const end = this.#ends[last];
      if (end !== undefined && at <= end) {
        this.#ends[last] = Math.max(end, healed);
        continue;
      }
      if (end !== undefined) faulty += end - (this.#starts[last] ?? end);
      this.#starts.push(at);
      this.#ends.push(healed);
      this.#before.push(faulty);
    }
  }

  /** Ends of the times with active faults. */
  get ends(): readonly number[] {
    return this.#ends;
  }

  /** µs without any active fault from `from` to `to`. */
  quiet(from: number, to: number): number {
    return to - from - (this.#faulty(to) - this.#faulty(from));
  }

  /** Whether a fault is active at `t`, was within `after` µs before, or will be within `before` µs. */
  touches(t: number, before: number, after: number): boolean {
    const next = firstAtLeast(this.#ends, t - after);
    const start = this.#starts[next];
    return start !== undefined && start <= t + before;
  }

  /** Whether any fault but this one was active at some time from `from` to `to`. */
  disturbed(fault: Fault, from: number, to: number): boolean {
    return this.all.some((other) => other !== fault && other.at <= to && other.healed >= from);
  }

  #faulty(t: number): number {
    const next = firstAtLeast(this.#starts, t);
    if (next === 0) return 0;
    const last = next - 1;
    return (this.#before[last] ?? 0) + Math.min(t, this.#ends[last] ?? t) - (this.#starts[last] ?? t);
  }
}
