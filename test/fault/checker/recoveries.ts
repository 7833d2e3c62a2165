import type { Fault, Faults, Mark } from './faults.js';
import { firstAtLeast, type Published } from './published.js';
import { type FaultRecovery, type KindRecovery, quantiles } from './verdict.js';

interface Samples {
  caughtUp: number[];
  runs: number[];
  /** A reader concerned never caught up. */
  never: boolean;
}

/** Measures how long it took from each fault until things went on. */
export class Recoveries {
  /** Ascending. */
  readonly marks: readonly Mark[];
  readonly times: readonly number[];
  readonly #faults: Faults;
  readonly #samples = new Map<Fault, Samples>();
  /** First delivery at or after each mark and before the next. */
  readonly #firstDelivery: Float64Array;

  constructor(faults: Faults, recoversFrom: (kind: string) => 'fault' | 'heal') {
    this.#faults = faults;
    const marks: Mark[] = faults.ends.map((t) => ({ t, fault: undefined }));
    for (const fault of faults.all) {
      marks.push({ t: recoversFrom(fault.kind) === 'fault' ? fault.at : fault.healed, fault });
      this.#samples.set(fault, { caughtUp: [], runs: [], never: false });
    }
    this.marks = marks.sort((a, b) => a.t - b.t);
    this.times = this.marks.map(({ t }) => t);
    this.#firstDelivery = this.#never();
  }

  /** An event was delivered at `t`; `mark` is the last one at or before. */
  delivered(mark: number, t: number): void {
    if (t < (this.#firstDelivery[mark] ?? 0)) this.#firstDelivery[mark] = t;
  }

  /** A reader had everything `us` after the fault's mark. */
  caughtUp(fault: Fault, us: number): void {
    this.#samples.get(fault)?.caughtUp.push(us);
  }

  neverCaughtUp(fault: Fault): void {
    const samples = this.#samples.get(fault);
    if (samples) samples.never = true;
  }

  /** A run of the killed worker went on or ended `us` after the fault. */
  runWentOn(fault: Fault, us: number): void {
    this.#samples.get(fault)?.runs.push(us);
  }

  /** Ask once, when every reader was looked at. */
  report(published: Published): { faults: FaultRecovery[]; kinds: KindRecovery[] } {
    const acks = this.#firstAcks(published);
    orLater(this.#firstDelivery);
    const faults = this.marks.flatMap(({ fault, t }, at) => {
      if (!fault) return [];
      const asked = cutOff(fault) === undefined || wasAsked(fault, published);
      const firstAck = (asked && acks.get(cutOff(fault))) || this.#never();
      return [this.#recovery(fault, t, firstAck[at], this.#firstDelivery[at])];
    });
    const kinds = [...new Set(faults.map(({ kind }) => kind))].sort();
    return { faults, kinds: kinds.map((kind) => this.#kind(kind, faults)) };
  }

  /** First acks at or after each mark: of anybody, and of each gateway that was cut off from something. */
  #firstAcks(published: Published): Map<string | undefined, Float64Array> {
    const acks = new Map<string | undefined, Float64Array>([[undefined, this.#never()]]);
    for (const fault of this.#faults.all) acks.set(cutOff(fault), this.#never());
    for (const [event, t] of published.ackedAt.entries()) {
      if (t === Number.POSITIVE_INFINITY) continue;
      const mark = firstAtLeast(this.times, t + 1) - 1;
      const gateway = published.gatewayOf(published.ackedOn[event]);
      for (const by of gateway === undefined ? [undefined] : [undefined, gateway]) {
        const first = acks.get(by);
        if (first && t < (first[mark] ?? 0)) first[mark] = t;
      }
    }
    for (const first of acks.values()) orLater(first);
    return acks;
  }

  #never(): Float64Array {
    return new Float64Array(this.marks.length).fill(Number.POSITIVE_INFINITY);
  }

  #recovery(fault: Fault, from: number, firstAck?: number, firstDelivery?: number): FaultRecovery {
    const { caughtUp, never } = this.#samples.get(fault) ?? { caughtUp: [], never: true };
    const slowest = caughtUp.reduce((most, us) => Math.max(most, us), 0);
    const ms = (t: number | undefined) =>
      t === undefined || t === Number.POSITIVE_INFINITY ? undefined : (t - from) / 1000;
    return {
      id: fault.id,
      kind: fault.kind,
      target: fault.target,
      from,
      overlapped: this.#faults.disturbed(fault, fault.at, Math.max(from + slowest, fault.healed)),
      firstAckMs: ms(firstAck),
      firstDeliveryMs: ms(firstDelivery),
      caughtUpMs: never || caughtUp.length === 0 ? undefined : slowest / 1000,
    };
  }

  #kind(kind: string, all: readonly FaultRecovery[]): KindRecovery {
    const faults = all.filter((fault) => fault.kind === kind);
    const clean = faults.filter(({ overlapped }) => !overlapped);
    const ids = new Set(clean.map(({ id }) => id));
    const samples = [...this.#samples].filter(([{ id }]) => ids.has(id)).map(([, of]) => of);
    const us = (values: (number | undefined)[]) => values.flatMap((ms) => (ms === undefined ? [] : [ms * 1000]));
    return {
      kind,
      faults: faults.length,
      overlapped: faults.length - clean.length,
      firstAck: quantiles(us(clean.map(({ firstAckMs }) => firstAckMs))),
      firstDelivery: quantiles(us(clean.map(({ firstDeliveryMs }) => firstDeliveryMs))),
      caughtUp: quantiles(samples.flatMap(({ caughtUp }) => caughtUp)),
      runs: quantiles(samples.flatMap(({ runs }) => runs)),
    };
  }
}

/** The gateway that was cut off from a server, while others were not: only what it acknowledges itself tells that it is well. */
const cutOff = ({ kind, target }: Fault): string | undefined => (kind.endsWith('-blackhole') ? target : undefined);

/** Whether anything was sent to the gateway while it was cut off: else nobody was there to be answered by it. */
function wasAsked({ at, healed, target }: Fault, published: Published): boolean {
  return published.sentAt.some(
    (t, event) => t >= at && t <= healed && published.gatewayOf(published.connections[event]) === target,
  );
}

/** What is first after a mark is so after the marks before, where they have nothing earlier. */
function orLater(first: Float64Array): void {
  for (let mark = first.length - 2; mark >= 0; mark--) first[mark] = Math.min(first[mark] ?? 0, first[mark + 1] ?? 0);
}
