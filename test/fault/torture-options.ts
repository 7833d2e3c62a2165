import { resolve } from 'node:path';
import { parseArgs } from 'node:util';

export interface TortureOptions {
  minutes: number;
  seed: number;
  gateways: number;
  /** Publishes per second, over all load processes. */
  rate: number;
  /** Sockets of a storm. */
  storm: number;
  /** Only these kinds of faults. */
  only: string[] | undefined;
  /** Where report, chart and logs go. */
  out: string;
  /** Keep the histories too: about 300 bytes for each event and reader. */
  keep: boolean;
}

const STORM = 5000;
/** From so many minutes on a run has to reach every figure; a shorter one has too few samples for that. */
const LONG_MINUTES = 20;

export const isLong = ({ minutes }: TortureOptions): boolean => minutes >= LONG_MINUTES;

export const USAGE = `npm run torture -- [options]
  --minutes M     how long faults are injected (default 2)
  --seed S        the same seed injects the same faults at the same times (default 1)
  --gateways N    2 or more (default 3)
  --rate R        publishes per second (default 900)
  --storm N       sockets that come back at once in a storm (default 5000)
  --only a,b      only these kinds of faults
  --out DIR       where the report goes (default .torture/<seed>)
  --keep          keep the histories beside the report`;

/** @throws Error that says which option is wrong. */
export function tortureOptions(args: string[]): TortureOptions {
  const { values } = parseArgs({
    args,
    options: {
      minutes: { type: 'string', default: '2' },
      seed: { type: 'string', default: '1' },
      gateways: { type: 'string', default: '3' },
      rate: { type: 'string', default: '900' },
      storm: { type: 'string', default: String(STORM) },
      only: { type: 'string' },
      out: { type: 'string' },
      keep: { type: 'boolean', default: false },
    },
  });
  const number = (name: 'minutes' | 'seed' | 'gateways' | 'rate' | 'storm', least: number, whole: boolean) => {
    const value = Number(values[name]);
    if (Number.isFinite(value) && value >= least && (!whole || Number.isInteger(value))) return value;
    throw new Error(`--${name} is ${values[name]}: it may be ${whole ? 'a whole number, ' : ''}${least} or more`);
  };
  const seed = number('seed', 0, true);
  return {
    minutes: number('minutes', 0.2, false),
    seed,
    gateways: number('gateways', 2, true),
    rate: number('rate', 1, false),
    storm: number('storm', 1, true),
    only: values.only?.split(',').map((kind) => kind.trim()),
    out: resolve(values.out ?? `.torture/${seed}`),
    keep: values.keep,
  };
}

/** The command that does the same again. */
export const replayCommand = ({ minutes, seed, gateways, rate, storm, only }: TortureOptions): string =>
  `npm run torture -- --minutes ${minutes} --seed ${seed} --gateways ${gateways} --rate ${rate}${storm === STORM ? '' : ` --storm ${storm}`}${only ? ` --only ${only.join(',')}` : ''}`;
