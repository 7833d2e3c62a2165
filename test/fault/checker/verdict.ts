/** Every rule of the checker, with the promise of docs/SPEC.md whose breach it is. */
export const rules = {
  /** An acknowledged event is not in the final table. */
  lost: 'LOG1',
  /** An event was delivered that is not in the final table. */
  vanished: 'LOG1',
  /** The final table lacks a number between its floor and its head. */
  hole: 'LOG2',
  /** Two events were seen at one place. */
  place: 'LOG2',
  /** An event acknowledged before another one was sent stands after it. */
  'real-time': 'LOG2',
  /** Events sent on one connection stand in another order. */
  'publisher-order': 'LOG2',
  /** An event was seen at two places. */
  twice: 'LOG3',
  /** Two acks of one event differ, or nobody had sent it. */
  answer: 'LOG3',
  /** An event is there that nobody sent, or whose every attempt was refused. */
  ghost: 'LOG4',
  /** A reader was given a later event and never the ones before it. */
  gap: 'FEED1',
  /** A reader was given an event again. */
  repeat: 'FEED1',
  /** A reader was given an event after a later one. */
  reorder: 'FEED1',
  /** A reader had less than the final table when all was over. */
  behind: 'FEED1',
  /** A reader was told to start over though its log was there. */
  resync: 'RES1',
  /** A reader was put at another place than it asked for. */
  resume: 'RES1',
  /** A tenant was shown what is another one's. */
  isolation: 'ISO1',
  /** A reader's view of a run is no prefix of what its worker made. */
  prefix: 'RUN1',
  /** A reader's view of a run went backwards without a reset. */
  'run-order': 'RUN1',
  /** Readers and table do not hold the same end of a run. */
  'run-end': 'RUN1',
  /** The final message of a run is not what its worker made. */
  'run-final': 'RUN1',
  /** A run that somebody was given the name of is not in the final table. */
  'run-lost': 'RUN1',
  /** A run is in the tables, or a log tells of one, that nobody asked for. */
  'run-ghost': 'RUN1',
  /** A log does not tell exactly once that a run was made and that it ended, in this order and in its room. */
  'run-events': 'RUN1',
  /** A run had no final state when all was over, or too long after its worker was killed. */
  'run-stuck': 'RUN2',
  /** A worker that had lost its lease, or never had it, wrote, or two workers held one attempt. */
  fence: 'RUN2',
  /** A reader took too long after a fault was healed, or to get in at all. */
  'caught-up': 'REC1',
  /** Too many publishes outside of faults were not acknowledged in time. */
  availability: 'REC1',
} as const satisfies Record<string, string>;

export type Rule = keyof typeof rules;

export interface Violation {
  rule: Rule;
  promise: string;
  text: string;
  /** µs of the monotonic clock, where it happened at a time. */
  t?: number;
}

/** Quantiles of samples in ms; all 0 where there are none. */
export interface Quantiles {
  n: number;
  p50: number;
  p99: number;
  max: number;
}

/** Recovery from one fault, in ms from its heal (or from the fault, see `recoversFrom`). `undefined`: never, or not measured. */
export interface FaultRecovery {
  id: number;
  kind: string;
  target: string;
  /** µs of the monotonic clock. */
  from: number;
  /** Another fault was active or began before everybody had caught up: not in the quantiles by kind. */
  overlapped: boolean;
  firstAckMs: number | undefined;
  firstDeliveryMs: number | undefined;
  /** When the last of the readers concerned had everything that was acknowledged at `from`. */
  caughtUpMs: number | undefined;
}

/** Recoveries of one kind of fault, of those that no other fault overlapped. */
export interface KindRecovery {
  kind: string;
  faults: number;
  overlapped: number;
  firstAck: Quantiles;
  firstDelivery: Quantiles;
  /** One sample for each reader concerned: those of the gateway where the target is one, those that were hit, those of the storm, else all but those of storms. */
  caughtUp: Quantiles;
  /** Runs of a killed or silent worker until the next attempt was seen or they ended. */
  runs: Quantiles;
}

export interface Counts {
  /** Events, each with one or more `attempts`. */
  sent: number;
  attempts: number;
  acked: number;
  duplicates: number;
  /** Attempts that were refused. */
  nacked: number;
  /** Attempts whose outcome nobody was told. */
  unknown: number;
  /** Events in the final tables. */
  stored: number;
  delivered: number;
  lost: number;
  repeated: number;
  reordered: number;
  /** Events a reader was never given. */
  missed: number;
  leaked: number;
  ghosts: number;
  readers: number;
  joins: number;
  resumes: number;
  resyncs: number;
  runs: number;
  faults: number;
}

export interface Verdict {
  ok: boolean;
  /** At most 50 of each rule. */
  violations: Violation[];
  /** How often each rule was broken; rules that were kept are missing. */
  broken: Partial<Record<Rule, number>>;
  counts: Counts;
  /** Final states of runs. */
  runStates: Record<string, number>;
  /** First attempts outside of faults, and how many of them were acknowledged in time. `share` is 1 where there are none. */
  availability: { sent: number; acked: number; share: number };
  /** From the first attempt of an event to its first ack, by whether it was sent outside of faults. */
  ackLatency: { quiet: Quantiles; faulty: Quantiles };
  /** The longest that any reader took from the heal of faults that others may feel: all of it, and what of it no such fault was on. In ms. */
  caughtUp: { allMs: number; quietMs: number };
  recoveries: { faults: FaultRecovery[]; kinds: KindRecovery[] };
  /** For each second of the history: events acknowledged and delivered in it. */
  timeline: { acked: number[]; delivered: number[] };
  /** First and last time in the history, µs of the monotonic clock. */
  span: { from: number; to: number };
}

const KEPT = 50;

/** Collects violations: all are counted, the first {@link KEPT} of each rule are kept. */
export class Findings {
  readonly kept: Violation[] = [];
  readonly broken: Partial<Record<Rule, number>> = {};

  add(rule: Rule, text: string, t?: number): void {
    const before = this.broken[rule] ?? 0;
    this.broken[rule] = before + 1;
    if (before < KEPT) this.kept.push({ rule, promise: rules[rule], text, ...(t === undefined ? {} : { t }) });
  }

  count(rule: Rule): number {
    return this.broken[rule] ?? 0;
  }
}

/** Sorts the samples (µs) in place. */
export function quantiles(samples: readonly number[]): Quantiles {
  const sorted = Float64Array.from(samples).sort();
  const at = (share: number) => (sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? 0) / 1000;
  return { n: sorted.length, p50: at(0.5), p99: at(0.99), max: at(1) };
}
