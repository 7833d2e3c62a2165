import type { Append, Appended } from '../core/log.js';
import { TuttiError } from '../errors.js';
import type { Sql, Tx } from './database.js';

/** What became of one event of a batch. */
export type Outcome = Appended | 'conflict';

interface Row {
  ordinal: number;
  status: 'stored' | 'duplicate' | 'conflict';
  epoch: string;
  seq: number;
  at: number;
}

/** A text array as Postgres reads it, so that the driver need not know the type. */
export const textArray = (values: readonly string[]): string =>
  `{${values.map((value) => `"${value.replaceAll('\\', '\\\\').replaceAll('"', '\\"')}"`).join(',')}}`;

/**
 * Appends events in one statement, in this order; all or, if it throws, none. Also inside a transaction, which then
 * holds the rooms' locks to its end. Outcomes are in the order of the events.
 */
export async function appendBatch(sql: Sql | Tx, events: readonly Append[]): Promise<Outcome[]> {
  const column = (name: keyof Append) => textArray(events.map((event) => event[name]));
  const rows = await sql<Row[]>`
    select * from tutti.append_events(${column('tenant')}::text[], ${column('room')}::text[], ${column('mid')}::text[],
      ${column('type')}::text[], ${column('data')}::text[], ${column('by')}::text[])`;
  const outcomes = new Array<Outcome | undefined>(events.length);
  for (const { ordinal, status, epoch, seq, at } of rows) {
    outcomes[ordinal - 1] = status === 'conflict' ? 'conflict' : { epoch, seq, at, duplicate: status === 'duplicate' };
  }
  return outcomes.map((outcome) => {
    if (!outcome) throw new TuttiError('internal', 'Internal error.');
    return outcome;
  });
}
