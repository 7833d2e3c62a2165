import type { EndRun, RunChange, Segment } from '../core/run-store.js';
import { toRun } from '../core/run-wire.js';
import { TuttiError } from '../errors.js';
import { Fold } from '../protocol/fold.js';
import type { Part } from '../protocol/parts.js';
import { type Actor, type JsonText, toJsonText } from '../protocol/primitives.js';
import { isTerminal, type RunError, type TerminalRunState } from '../protocol/runs.js';
import { appendBatch } from './append-batch.js';
import type { Tx } from './database.js';
import { type RunRow, storedRun } from './run-rows.js';

/** How a run left its queue or its worker without anybody asking for it. */
export const SWEEPER: Actor = { kind: 'operator', id: 'tutti' };

/** The event a final state enters the room's log as. */
const EVENT: Record<TerminalRunState, string> = {
  completed: 'run.completed',
  failed: 'run.failed',
  cancelled: 'run.cancelled',
  expired: 'run.failed',
};

export const FENCED = () => new TuttiError('fenced', 'The run is no longer yours.');

/** Ends a run that is locked: see `RunStore.end`. */
export async function endLocked(tx: Tx, row: RunRow, end: Omit<EndRun, 'tenant' | 'run'>): Promise<RunChange> {
  if (end.fence !== null && end.fence !== row.fence) throw FENCED();
  if (isTerminal(row.state)) return { run: storedRun(row) };
  if (end.fence !== null && row.state === 'queued') throw FENCED();
  const committed = await commitLast(tx, row, end);
  const parts = await foldedOutput(tx, row);
  const [ended] = await tx<Pick<RunRow, 'finishedAt' | 'firstTokenAt'>[]>`
    update tutti.runs set
      state = ${end.state}, committed = ${committed}, lease_until = null,
      finished_at = floor(extract(epoch from clock_timestamp()) * 1000),
      first_token_at = case when ${committed}::integer > 0
        then coalesce(first_token_at, floor(extract(epoch from clock_timestamp()) * 1000)) end,
      usage = ${end.usage ? toJsonText(end.usage) : null}::text::json,
      error = ${end.error ? toJsonText(end.error) : null}::text::json,
      output = ${toJsonText(parts)}::text::json
    where id = ${row.id}
    returning finished_at as "finishedAt", first_token_at as "firstTokenAt"`;
  if (!ended) throw new TuttiError('internal', 'Internal error.');
  const run = storedRun({
    ...row,
    ...ended,
    state: end.state,
    committed,
    usage: end.usage ?? null,
    error: end.error ?? null,
    output: parts,
  });
  const message = toJsonText({ role: 'assistant', parts });
  const meta = end.meta === undefined ? '' : `,"meta":${end.meta}`;
  const append = {
    tenant: row.tenant,
    room: row.room,
    mid: `run:${row.id}:end`,
    type: EVENT[end.state],
    data: `{"run":${toJsonText(toRun(run))},"message":${message}${meta}}` as JsonText,
    by: toJsonText(end.by),
  };
  const [outcome] = await appendBatch(tx, [append]);
  if (!outcome || outcome === 'conflict') throw new TuttiError('internal', 'Internal error.');
  const { tenant: _, ...event } = append;
  return { run, event: { ...event, epoch: outcome.epoch, seq: outcome.seq, at: outcome.at } };
}

/** Gives a locked run back to the queue, or fails it when its attempts are used up: see `RunStore.retry`. */
export async function retryLocked(
  tx: Tx,
  row: RunRow,
  retry: { error: RunError; by: Actor; queueTtlMs: number },
): Promise<RunChange> {
  if (row.attempt >= row.maxAttempts) {
    const { error, by } = retry;
    return endLocked(tx, row, {
      fence: null,
      state: 'failed',
      last: undefined,
      usage: undefined,
      error,
      meta: undefined,
      by,
    });
  }
  await tx`delete from tutti.run_segments where run_id = ${row.id}`;
  return requeueLocked(tx, row, row.attempt + 1, retry.queueTtlMs);
}

/** Puts a locked run back to the place in the queue it had; whoever held it is fenced. */
export async function requeueLocked(tx: Tx, row: RunRow, attempt: number, queueTtlMs: number): Promise<RunChange> {
  const fence = row.fence + 1;
  await tx`
    update tutti.runs set
      state = 'queued', attempt = ${attempt}, fence = ${fence}, committed = 0, worker = null, lease_until = null,
      started_at = null, first_token_at = null,
      deadline = clock_timestamp() + ${queueTtlMs}::integer * interval '1 millisecond'
    where id = ${row.id}`;
  return {
    run: storedRun({ ...row, state: 'queued', attempt, fence, committed: 0, startedAt: null, firstTokenAt: null }),
  };
}

/** @returns how many parts are committed then. */
async function commitLast(tx: Tx, row: RunRow, { last, fence }: { last: Segment | undefined; fence: number | null }) {
  if (!last || last.n + last.count <= row.committed) return row.committed;
  const foreign = last.fence !== row.fence || last.attempt !== row.attempt || row.state === 'queued';
  if (foreign || last.n > row.committed) {
    if (fence === null) return row.committed; // a cancel ends the run with what there is
    if (foreign) throw FENCED();
    throw new TuttiError('out_of_order', 'Parts before these are missing.', { expected: row.committed });
  }
  const parts = (JSON.parse(last.parts) as Part[]).slice(row.committed - last.n);
  await tx`
    insert into tutti.run_segments (run_id, attempt, n, count, tenant_id, parts)
    values (${row.id}, ${row.attempt}, ${row.committed}, ${parts.length}, ${row.tenant}, ${toJsonText(parts)}::text::json)`;
  return row.committed + parts.length;
}

async function foldedOutput(tx: Tx, row: RunRow): Promise<Part[]> {
  const fold = new Fold();
  const segments = await tx<{ parts: Part[] }[]>`
    select parts from tutti.run_segments where run_id = ${row.id} and attempt = ${row.attempt} order by n`;
  for (const { parts } of segments) fold.addAll(parts);
  return fold.parts();
}
