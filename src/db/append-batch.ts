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
  met?: string;
}

/** A server met in the same statement: see `tutti.meet`. */
export interface Meeting {
  readonly known: string | null;
  saw(identity: string): void;
}

/** A text array as Postgres reads it, so that the driver need not know the type. */
export const textArray = (values: readonly string[]): string =>
  `{${values.map((value) => `"${value.replaceAll('\\', '\\\\').replaceAll('"', '\\"')}"`).join(',')}}`;

/**
 * Appends events in one statement, in this order; all or, if it throws, none. Also inside a transaction, which then
 * holds the rooms' locks to its end. Outcomes are in the order of the events.
 * @param meeting where no transaction around it has met the server
 */
export async function appendBatch(sql: Sql | Tx, events: readonly Append[], meeting?: Meeting): Promise<Outcome[]> {
  const column = (name: keyof Append) => textArray(events.map((event) => event[name]));
  const rows = await sql<Row[]>`
    select * from ${meeting ? sql`tutti.meet(${meeting.known}::text) as met,` : sql``} tutti.append_events(${column('tenant')}::text[], ${column('room')}::text[], ${column('mid')}::text[],
      ${column('type')}::text[], ${column('data')}::text[], ${column('by')}::text[])`;
  if (meeting && rows[0]?.met) meeting.saw(rows[0].met);
  const outcomes = new Array<Outcome | undefined>(events.length);
  for (const { ordinal, status, epoch, seq, at } of rows) {
    outcomes[ordinal - 1] = status === 'conflict' ? 'conflict' : { epoch, seq, at, duplicate: status === 'duplicate' };
  }
  return outcomes.map((outcome) => {
    if (!outcome) throw new TuttiError('internal', 'Internal error.');
    return outcome;
  });
}
