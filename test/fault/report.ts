import { writeFile } from 'node:fs/promises';
import { cpus, totalmem } from 'node:os';
import { join } from 'node:path';
import type { KindRecovery, Quantiles, Verdict } from './checker/check.js';
import type { Fault } from './faults/fault.js';
import { drawChart } from './report-chart.js';
import { type Figure, figuresOf } from './report-figures.js';
import type { Injected } from './torture-faults.js';
import { isLong, replayCommand, type TortureOptions } from './torture-options.js';

export interface ReportData {
  options: TortureOptions;
  verdict: Verdict;
  faults: readonly Fault[];
  leftOut: readonly string[];
  done: readonly Injected[];
  /** Faults that did not bite, with the reason. */
  notDone: readonly string[];
  /** What was wrong beside what the checker found. */
  wrong: readonly string[];
}

const VIOLATIONS_SHOWN = 20;

const count = (value: number): string => value.toLocaleString('en');
const seconds = (ms: number): string => (ms / 1000).toFixed(ms < 10_000 ? 2 : 1);
const three = ({ n, p50, p99, max }: Quantiles): string =>
  n === 0 ? '' : `${seconds(p50)} / ${seconds(p99)} / ${seconds(max)}`;
const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ');

function table(head: string[], rows: string[][]): string {
  const line = (cells: string[]) => `| ${cells.map(cell).join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n');
}

/** Writes `report.md` and `chart.svg`. @returns what of it belongs on a terminal. */
export async function writeReport(data: ReportData): Promise<string> {
  const { options, verdict, done } = data;
  const { kinds } = verdict.recoveries;
  const chart = drawChart({
    from: verdict.span.from,
    ...verdict.timeline,
    faults: done,
    recoveries: kinds
      .filter(({ caughtUp }) => caughtUp.n > 0)
      .map(({ kind, caughtUp: { p50, p99, max } }) => ({ kind, p50, p99, max })),
  });
  await writeFile(join(options.out, 'chart.svg'), chart);
  await writeFile(join(options.out, 'report.md'), page(data));
  await writeFile(join(options.out, 'verdict.json'), JSON.stringify(verdict, undefined, 1));
  return [...headline(data), ...problems(data), ...missed(data), '', `report: ${join(options.out, 'report.md')}`].join(
    '\n',
  );
}

function page(data: ReportData): string {
  const { options, verdict, leftOut, notDone } = data;
  const { counts, runStates, ackLatency, availability } = verdict;
  const { quiet, faulty } = ackLatency;
  const noted = [...new Set(data.done.flatMap(({ kind, note }) => (note === undefined ? [] : [kind])))];
  const lasted = (verdict.span.to - verdict.span.from) / 60e6;
  const ms = ({ p50, p99, max }: Quantiles) => `${p50.toFixed(1)} / ${p99.toFixed(0)} / ${max.toFixed(0)} ms`;
  return `${[
    `# Torture run, seed ${options.seed}`,
    headline(data).join('\n'),
    `\`${replayCommand(options)}\` on ${machine()}; ${lasted.toFixed(1)} minutes, ${new Date().toISOString().slice(0, 10)}.`,
    '![events per second over the faults, and recovery by kind of fault](chart.svg)',
    '## Figures',
    table(
      ['figure', 'aim', 'measured', ''],
      figuresOf(verdict, isLong(options)).map((figure) => [figure.what, figure.aim, figure.measured, mark(figure)]),
    ),
    '## Faults',
    'Recovery in seconds, p50 / p99 / max, of the faults that no other fault overlapped. "Caught up" has one sample for each reader concerned: of the gateway, where one was hit or cut off, of the clients that were hit, of the storm, where it was one. Of a gateway that was cut off, the first ack is its own.',
    table(['fault', 'times', 'overlapped', 'first ack', 'caught up', 'what holds meanwhile'], kindRows(data)),
    ...(leftOut.length > 0 ? [`Left out here: ${leftOut.join('; ')}.`] : []),
    ...(notDone.length > 0 ? [`Not counted, as they hit nothing: ${notDone.join('; ')}.`] : []),
    '## Everything else',
    table(
      ['', ''],
      [
        [
          'publishes',
          `${count(counts.sent)} events in ${count(counts.attempts)} attempts, ${count(counts.nacked)} refused, ${count(counts.unknown)} left open, ${count(counts.duplicates)} answered as duplicates`,
        ],
        [
          'deliveries',
          `${count(counts.delivered)} to ${count(counts.readers)} readers, which joined ${count(counts.joins)} times, resumed ${count(counts.resumes)} times, were resynced ${count(counts.resyncs)} times`,
        ],
        ...noted.map((kind) => [
          kind,
          data.done.flatMap((one) => (one.kind === kind && one.note !== undefined ? [one.note] : [])).join('; '),
        ]),
        [
          'the slowest reader to catch up',
          `${seconds(verdict.caughtUp.allMs)} s after faults were healed, ${seconds(verdict.caughtUp.quietMs)} s of it with no other on that it could feel`,
        ],
        ['publish to ack, outside of faults', `${ms(quiet)} (p50 / p99 / max, n = ${count(quiet.n)})`],
        ['publish to ack, in faults, retries included', `${ms(faulty)} (n = ${count(faulty.n)})`],
        ['acknowledged outside of faults', `${(availability.share * 100).toFixed(3)} % of ${count(availability.sent)}`],
        [
          'runs',
          `${count(counts.runs)}: ${Object.entries(runStates)
            .map(([state, n]) => `${count(n)} ${state}`)
            .join(', ')}`,
        ],
      ],
    ),
    ...problems(data),
  ].join('\n\n')}\n`;
}

function headline({ verdict, wrong, done }: ReportData): string[] {
  const { counts } = verdict;
  const found = verdict.violations.length + wrong.length;
  return [
    `**${found === 0 ? 'No violation' : 'VIOLATIONS'}**: ${count(done.length)} faults of ${new Set(done.map(({ kind }) => kind)).size} kinds, ${count(counts.acked)} events acknowledged, ` +
      `${count(counts.delivered)} delivered, ${counts.lost} lost, ${counts.repeated} repeated, ${counts.reordered} reordered, ${counts.leaked} leaked, ${count(counts.runs)} runs.`,
  ];
}

/** Figures that this run measured and did not reach. */
const missed = ({ verdict, options }: ReportData): string[] =>
  figuresOf(verdict, isLong(options)).flatMap(({ what, aim, measured, reached }) =>
    reached === false ? [`NOT REACHED: ${what}: ${measured}, aim ${aim}`] : [],
  );

function kindRows({ faults, verdict, done }: ReportData): string[][] {
  const of = (kind: string): KindRecovery | undefined => verdict.recoveries.kinds.find((one) => one.kind === kind);
  return faults.flatMap(({ kind, promise }) => {
    const times = done.filter((one) => one.kind === kind).length;
    if (times === 0) return [];
    const recovery = of(kind);
    return [
      [
        kind,
        String(times),
        String(recovery?.overlapped ?? 0),
        recovery ? three(recovery.firstAck) : '',
        recovery ? three(recovery.caughtUp) : '',
        promise,
      ],
    ];
  });
}

function problems({ verdict, wrong }: ReportData): string[] {
  const { violations, broken } = verdict;
  if (violations.length + wrong.length === 0) return [];
  return [
    '## Violations',
    ...Object.entries(broken).map(([rule, times]) => `- ${rule}: ${times}`),
    ...wrong.map((text) => `- ${text.slice(0, 2000)}`),
    ...violations.slice(0, VIOLATIONS_SHOWN).map(({ rule, promise, text }) => `- ${promise} ${rule}: ${text}`),
  ];
}

function mark({ reached }: Figure): string {
  if (reached === undefined) return 'not measured';
  return reached ? 'reached' : '**not reached**';
}

function machine(): string {
  const [first] = cpus();
  const memory = Math.round(totalmem() / 2 ** 30);
  return `${cpus().length} × ${first?.model.trim() ?? process.arch}, ${memory} GB, Node ${process.versions.node}, ${process.platform}`;
}
