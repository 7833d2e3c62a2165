import type { Part } from './faults/fault.js';
import type { Injected } from './torture-faults.js';

/** What the chart shows; seconds are counted from `from`. */
export interface ChartData {
  /** µs of the monotonic clock. */
  from: number;
  /** In each second. */
  acked: readonly number[];
  delivered: readonly number[];
  faults: readonly Injected[];
  recoveries: readonly { kind: string; p50: number; p99: number; max: number }[];
}

const WIDTH = 1000;
const LEFT = 110;
const RIGHT = 20;
const PLOT = WIDTH - LEFT - RIGHT;
const CURVE = 150;
const LANE = 16;
const ROW = 15;

const COLOURS: Record<Part, string> = {
  gateway: '#c2410c',
  redis: '#b91c1c',
  postgres: '#1d4ed8',
  clients: '#047857',
  workers: '#7c3aed',
  tenants: '#a16207',
};
const PARTS = Object.keys(COLOURS) as Part[];

const text = (x: number, y: number, words: string, more = '') =>
  `<text x="${round(x)}" y="${round(y)}"${more ? ` ${more}` : ''}>${escaped(words)}</text>`;
const line = (x1: number, y1: number, x2: number, y2: number, colour = '#d4d4d8') =>
  `<line x1="${round(x1)}" y1="${round(y1)}" x2="${round(x2)}" y2="${round(y2)}" stroke="${colour}"/>`;
const round = (value: number) => Math.round(value * 10) / 10;
const escaped = (words: string) => words.replaceAll('&', '&amp;').replaceAll('<', '&lt;');

/** An SVG of the run: events per second over the faults of each part, then how long recovery took by kind of fault. */
export function drawChart(data: ChartData): string {
  const lanesAt = 30 + CURVE + 12;
  const recoveriesAt = lanesAt + PARTS.length * LANE + 62;
  const height = recoveriesAt + data.recoveries.length * ROW + 34;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" font-family="system-ui, sans-serif" font-size="11" fill="#27272a">`,
    '<title>Events per second over the faults, and recovery by kind of fault</title>',
    `<rect width="${WIDTH}" height="${height}" fill="#ffffff"/>`,
    ...drawCurves(data),
    ...drawLanes(data, lanesAt),
    ...drawRecoveries(data, recoveriesAt),
    '</svg>',
    '',
  ].join('\n');
}

function drawCurves({ acked, delivered }: ChartData): string[] {
  const seconds = Math.max(2, acked.length, delivered.length);
  const most = (values: readonly number[]) => values.reduce((max, value) => Math.max(max, value), 1);
  const top = 30;
  // Each pixel shows the mean of its seconds.
  const path = (values: readonly number[], scale: number) => {
    const step = Math.max(1, Math.ceil(seconds / PLOT));
    const points: string[] = [];
    for (let at = 0; at < values.length; at += step) {
      const slice = values.slice(at, at + step);
      const mean = slice.reduce((sum, value) => sum + value, 0) / slice.length;
      points.push(`${round(LEFT + (at / seconds) * PLOT)},${round(top + CURVE - (mean / scale) * CURVE)}`);
    }
    return points.join(' ');
  };
  const ackScale = most(acked);
  const deliveredScale = most(delivered);
  return [
    text(LEFT, 18, `events acknowledged per second (most: ${ackScale})`, 'fill="#0f766e"'),
    text(WIDTH - RIGHT, 18, `delivered to readers (most: ${deliveredScale})`, 'text-anchor="end" fill="#a1a1aa"'),
    line(LEFT, top, LEFT, top + CURVE),
    line(LEFT, top + CURVE, WIDTH - RIGHT, top + CURVE),
    text(LEFT - 6, top + 8, String(ackScale), 'text-anchor="end"'),
    text(LEFT - 6, top + CURVE, '0', 'text-anchor="end"'),
    `<polyline points="${path(delivered, deliveredScale)}" fill="none" stroke="#d4d4d8"/>`,
    `<polyline points="${path(acked, ackScale)}" fill="none" stroke="#0f766e"/>`,
  ];
}

function drawLanes({ from, acked, delivered, faults }: ChartData, top: number): string[] {
  const seconds = Math.max(2, acked.length, delivered.length);
  const x = (us: number) => LEFT + Math.min(1, Math.max(0, (us - from) / 1e6 / seconds)) * PLOT;
  const lanes = PARTS.map((part, row) =>
    text(LEFT - 6, top + row * LANE + 11, part, `text-anchor="end" fill="${COLOURS[part]}"`),
  );
  const marks = faults.map(({ kind, part, target, at, healed }) => {
    const width = Math.max(1.5, x(healed) - x(at));
    const y = top + PARTS.indexOf(part) * LANE + 2;
    const title = escaped(`${kind} (${target}), ${round((healed - at) / 1e6)} s`);
    return `<rect x="${round(x(at))}" y="${y}" width="${round(width)}" height="${LANE - 5}" fill="${COLOURS[part]}" opacity="0.75"><title>${title}</title></rect>`;
  });
  const bottom = top + PARTS.length * LANE;
  const step = [5, 10, 30, 60, 120, 300, 600].find((size) => seconds / size <= 16) ?? 1200;
  const ticks: string[] = [];
  for (let at = 0; at <= seconds; at += step) {
    const label = step < 60 ? `${at} s` : `${at / 60} min`;
    ticks.push(line(x(from + at * 1e6), 30 + CURVE, x(from + at * 1e6), bottom, '#e4e4e7'));
    ticks.push(text(x(from + at * 1e6), bottom + 14, label, 'text-anchor="middle" fill="#71717a"'));
  }
  return [...ticks, ...lanes, ...marks];
}

function drawRecoveries({ recoveries }: ChartData, top: number): string[] {
  const most = recoveries.reduce((max, of) => Math.max(max, of.max), 1000);
  const x = (ms: number) => LEFT + 60 + (ms / most) * (PLOT - 120);
  const rows = recoveries.flatMap(({ kind, p50, p99, max }, row) => {
    const y = top + row * ROW;
    return [
      text(LEFT + 52, y + 4, kind, 'text-anchor="end"'),
      line(x(0), y, x(max), y, '#a1a1aa'),
      `<rect x="${round(x(p50))}" y="${y - 4}" width="${round(Math.max(1.5, x(p99) - x(p50)))}" height="8" fill="#0f766e" opacity="0.6"/>`,
      text(x(max) + 5, y + 4, `${(max / 1000).toFixed(1)} s`, 'fill="#71717a"'),
    ];
  });
  const title = 'until every reader concerned had caught up: from p50 to p99 (bar) and the longest (line)';
  return [text(LEFT, top - 20, title), ...rows];
}
