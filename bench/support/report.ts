/** One line of a benchmark's table. Figures of several rounds; the middle one is shown. */
export interface Row {
  what: string;
  unit: string;
  ours: number[];
  floor: number[];
  /** How ours is held against the floor; default the ratio. */
  compare?: 'ratio' | 'difference';
  aim?: string;
}

export const median = (values: readonly number[]): number => quantile(values, 0.5);

export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? Number.NaN;
}

/**
 * Runs ours and the floor in turn, so that whatever the machine does meanwhile meets both. The first pair warms up and
 * is thrown away.
 */
export async function alternate<T>(
  rounds: number,
  ours: () => Promise<T>,
  floor: () => Promise<T>,
): Promise<{ ours: T[]; floor: T[] }> {
  const results: { ours: T[]; floor: T[] } = { ours: [], floor: [] };
  for (let round = 0; round <= rounds; round++) {
    const pair = [await ours(), await floor()] as const;
    if (round === 0) continue;
    results.ours.push(pair[0]);
    results.floor.push(pair[1]);
  }
  return results;
}

const digits = (value: number): string => {
  if (!Number.isFinite(value)) return '-';
  const size = Math.abs(value);
  return size >= 1000
    ? value.toFixed(0)
    : size >= 100
      ? value.toFixed(0)
      : size >= 10
        ? value.toFixed(1)
        : value.toFixed(2);
};

/** The pairs of each round compared: what is shown is the middle of these and their range. */
function compared({ ours, floor, compare = 'ratio', unit }: Row): string {
  const pairs = ours.map((value, i) => {
    const base = floor[i] ?? Number.NaN;
    return compare === 'ratio' ? value / base : value - base;
  });
  if (pairs.every(Number.isNaN)) return '-';
  const sign = compare === 'ratio' ? '×' : unit;
  const range = pairs.length > 1 ? ` (${digits(Math.min(...pairs))} … ${digits(Math.max(...pairs))})` : '';
  return `${compare === 'ratio' ? '' : '+'}${digits(median(pairs))} ${sign}${range}`;
}

/** Prints a benchmark's table. */
export function report(title: string, rows: readonly Row[]): void {
  const cells = rows.map((row) => [
    row.what,
    `${digits(median(row.ours))} ${row.unit}`,
    row.floor.length === 0 ? '-' : `${digits(median(row.floor))} ${row.unit}`,
    row.floor.length === 0 ? '-' : compared(row),
    row.aim ?? '',
  ]);
  const table = [['', 'ours', 'floor', 'ours to floor', 'aim'], ...cells];
  const widths = (table[0] ?? []).map((_, column) => Math.max(...table.map((line) => line[column]?.length ?? 0)));
  process.stdout.write(`\n${title}\n`);
  for (const line of table) {
    process.stdout.write(`  ${line.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join('  ')}\n`);
  }
}
