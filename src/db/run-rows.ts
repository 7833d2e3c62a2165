import type { StoredRun } from '../core/run-store.js';
import { TuttiError } from '../errors.js';
import type { Part } from '../protocol/parts.js';
import type { Actor } from '../protocol/primitives.js';
import { isTerminal, type RunError, type RunState, type Usage } from '../protocol/runs.js';
import type { Tx } from './database.js';

export interface RunRow {
  id: string;
  tenant: string;
  room: string;
  model: string;
  state: RunState;
  attempt: number;
  maxAttempts: number;
  fence: number;
  committed: number;
  initiator: Actor;
  createdAt: number;
  startedAt: number | null;
  firstTokenAt: number | null;
  finishedAt: number | null;
  usage: Usage | null;
  error: RunError | null;
  output: Part[] | null;
}

/** Begins a statement that reads runs as `r`. */
export const selectRuns = (tx: Tx) => tx`
  select r.id, r.tenant_id as tenant, m.name as room, r.model, r.state, r.attempt, r.max_attempts as "maxAttempts",
    r.fence, r.committed, r.initiator, r.created_at as "createdAt", r.started_at as "startedAt",
    r.first_token_at as "firstTokenAt", r.finished_at as "finishedAt", r.usage, r.error, r.output
  from tutti.runs r join tutti.rooms m on m.id = r.room_id`;

export function storedRun(row: RunRow): StoredRun {
  const { maxAttempts: _, startedAt, firstTokenAt, finishedAt, usage, error, output, ...run } = row;
  return {
    ...run,
    ...(startedAt === null ? {} : { startedAt }),
    ...(firstTokenAt === null ? {} : { firstTokenAt }),
    ...(finishedAt === null ? {} : { finishedAt }),
    ...(usage === null ? {} : { usage }),
    ...(error === null ? {} : { error }),
    ...(output === null ? {} : { output }),
    ...(isTerminal(row.state) ? { length: row.committed } : {}),
  };
}

/** Locks a run to the end of the transaction. A run is always locked before its room. @throws TuttiError `not_found`. */
export async function lockRun(tx: Tx, tenant: string, run: string): Promise<RunRow> {
  const [row] = await tx<RunRow[]>`
    ${selectRuns(tx)} where r.id = ${run} and r.tenant_id = ${tenant} for no key update of r`;
  if (!row) throw new TuttiError('not_found', 'There is no such run.');
  return row;
}
