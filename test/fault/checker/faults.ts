import type { EntryOf } from './entries.js';
import { Spans } from './spans.js';

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

/**
 * What workers, tenants and single clients suffer or do is no reason for anybody else to be late: only what happens to a
 * gateway, to Redis, to Postgres or to clients by the thousand is.
 */
const NO_EXCUSE = /^(worker|tenant|poison|client-(cut|half-open|tabs))/;

/** When faults were active. Ask after {@link Faults.settle}. */
export class Faults {
  readonly all: Fault[] = [];
  readonly #byId = new Map<number, Fault>();
  #active = new Spans([]);
  #excuses = new Spans([]);

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
    this.#active = new Spans(this.all);
    this.#excuses = new Spans(this.all.filter(({ kind }) => !NO_EXCUSE.test(kind)));
  }

  /** Ends of the times with active faults that others may feel. */
  get ends(): readonly number[] {
    return this.#excuses.ends;
  }

  /** µs from `from` to `to` without any active fault that others may feel. */
  quiet(from: number, to: number): number {
    return this.#excuses.outside(from, to);
  }

  /** Whether any fault is active at `t`, was within `after` µs before, or will be within `before` µs. */
  touches(t: number, before: number, after: number): boolean {
    return this.#active.touches(t, before, after);
  }

  /** Whether any fault but this one was active at some time from `from` to `to`. */
  disturbed(fault: Fault, from: number, to: number): boolean {
    return this.all.some((other) => other !== fault && other.at <= to && other.healed >= from);
  }
}
