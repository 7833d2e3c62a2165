import { InvalidArgumentError } from 'commander';
import type { z } from 'zod';

/** Parses an argument by a schema. */
export const arg =
  <T extends z.ZodType>(schema: T) =>
  (text: string): z.output<T> =>
    checked(schema, text);

/** Parses an argument that is JSON by a schema. */
export const jsonArg =
  <T extends z.ZodType>(schema: T) =>
  (text: string): z.output<T> => {
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch {
      throw new InvalidArgumentError('It is not JSON; in a shell, put it in single quotes.');
    }
    return checked(schema, value);
  };

function checked<T extends z.ZodType>(schema: T, value: unknown): z.output<T> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  const path = issue?.path.map(String).join('.') ?? '';
  throw new InvalidArgumentError(`${path === '' ? 'It' : path}: ${issue?.message ?? 'is not valid'}.`);
}

const UNITS: Record<string, number> = { '': 1, s: 1, m: 60, h: 3600, d: 86_400 };

/** `90`, `90s`, `15m`, `8h` or `7d`, as s. */
export function duration(text: string): number {
  const match = /^(\d{1,9})([smhd]?)$/.exec(text);
  const seconds = Number(match?.[1]) * (UNITS[match?.[2] ?? ''] ?? 1);
  if (!(seconds >= 1)) throw new InvalidArgumentError('It must be like 90s, 15m, 8h or 7d.');
  return seconds;
}

/** Rows in columns, as wide as their widest cell. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths: number[] = [];
  for (const row of rows) for (const [i, cell] of row.entries()) widths[i] = Math.max(widths[i] ?? 0, cell.length);
  return rows
    .map((row) =>
      row
        .map((cell, i) => cell.padEnd(widths[i] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}
