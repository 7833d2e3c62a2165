import type { KindRecovery, Quantiles, Verdict } from './checker/check.js';

/** One figure that a run has to reach. */
export interface Figure {
  what: string;
  aim: string;
  measured: string;
  /** `undefined` where this run has nothing to say about it. */
  reached: boolean | undefined;
}

const LONG_RUN = { acked: 1_000_000, faults: 300 };

const seconds = (ms: number): string => `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;

/** The worst of the kinds that match, at one quantile. */
function worst(kinds: readonly KindRecovery[], match: RegExp, of: (kind: KindRecovery) => Quantiles): Quantiles {
  const samples = kinds.filter(({ kind }) => match.test(kind)).map(of);
  const most = (read: (one: Quantiles) => number) => samples.reduce((max, one) => Math.max(max, read(one)), 0);
  return {
    n: samples.reduce((sum, { n }) => sum + n, 0),
    p50: most(({ p50 }) => p50),
    p99: most(({ p99 }) => p99),
    max: most(({ max }) => max),
  };
}

function within(what: string, limitMs: number, quantile: 'p99' | 'max', samples: Quantiles): Figure {
  const value = samples[quantile];
  return {
    what,
    aim: `≤ ${limitMs / 1000} s ${quantile}`,
    measured: samples.n === 0 ? 'no sample' : `${seconds(value)} (n = ${samples.n})`,
    reached: samples.n === 0 ? undefined : value <= limitMs,
  };
}

/** The figures of docs/reliability/README.md as this run measured them. What only a `long` run can have is not asked of another. */
export function figuresOf({ counts, recoveries, availability }: Verdict, long: boolean): Figure[] {
  const none = (what: string, count: number): Figure => ({
    what: `events ${what}`,
    aim: '0',
    measured: String(count),
    reached: count === 0,
  });
  const least = (what: string, count: number, aim: number): Figure => ({
    what,
    aim: `≥ ${aim.toLocaleString('en')}`,
    measured: count.toLocaleString('en'),
    reached: count >= aim || (long ? false : undefined),
  });
  const { kinds } = recoveries;
  return [
    none('lost', counts.lost),
    none('repeated', counts.repeated),
    none('reordered', counts.reordered),
    none('leaked', counts.leaked),
    least('events acknowledged', counts.acked, LONG_RUN.acked),
    least('faults', counts.faults, LONG_RUN.faults),
    within(
      'delivery after Redis is back, every reader caught up',
      2000,
      'p99',
      worst(kinds, /^redis-/, ({ caughtUp }) => caughtUp),
    ),
    within(
      'publishing after Postgres is back, first ack',
      3000,
      'p99',
      worst(kinds, /^postgres-/, ({ firstAck }) => firstAck),
    ),
    within(
      'clients of a killed gateway, from the kill until caught up',
      5000,
      'p99',
      worst(kinds, /^gateway-kill$/, ({ caughtUp }) => caughtUp),
    ),
    within(
      'every reader caught up, after any fault that was alone',
      10_000,
      'max',
      worst(kinds, /./, ({ caughtUp }) => caughtUp),
    ),
    within(
      'the run of a killed worker goes on or ends',
      20_000,
      'max',
      worst(kinds, /^worker-kill$/, ({ runs }) => runs),
    ),
    {
      what: 'publishes outside of faults that were acknowledged',
      aim: '≥ 99 %',
      measured: `${(availability.share * 100).toFixed(3)} % of ${availability.sent.toLocaleString('en')}`,
      reached: availability.share >= 0.99,
    },
  ];
}
