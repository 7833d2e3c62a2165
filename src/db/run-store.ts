import { roomOf, tenantOf } from '../core/keys.js';
import type { CommitResult, CreateRun, RunChange, RunStore, Segment, StoredRun } from '../core/run-store.js';
import { toRun } from '../core/run-wire.js';
import { TuttiError } from '../errors.js';
import { type Actor, type JsonText, toJsonText } from '../protocol/primitives.js';
import { isTerminal, type RunState } from '../protocol/runs.js';
import { appendBatch, textArray } from './append-batch.js';
import type { Database, Tx } from './database.js';
import { endLocked, FENCED, requeueLocked, retryLocked, SWEEPER } from './run-end.js';
import { lockRun, type RunRow, selectRuns, storedRun } from './run-rows.js';

/** Rooms looked up in one statement. */
const ROOMS_MAX = 1000;
/** Runs of a sweep that are dealt with at the same time. */
const SWEEP_WIDTH = 4;

interface CommitRow {
  ordinal: number;
  status: 'committed' | 'fenced' | 'ended';
  state: RunState;
  committed: number;
}

type Piece = Pick<Segment, 'tenant' | 'run' | 'fence'> & Partial<Segment>;

/** Runs in Postgres. */
export function createRunStore(database: Database): RunStore {
  const one = async (tenant: string, work: (tx: Tx) => Promise<RunChange>) => database.withTenants([tenant], work);

  return {
    create: (run, limits) => one(run.tenant, (tx) => create(tx, run, limits)),

    get: (tenant, run) => database.withTenants([tenant], (tx) => find(tx, run)),
    find: (run) => database.withTenants('*', (tx) => find(tx, run)),

    async live(rooms) {
      const live: StoredRun[] = [];
      for (let i = 0; i < rooms.length; i += ROOMS_MAX) {
        const tenants = rooms.slice(i, i + ROOMS_MAX).map(tenantOf);
        const names = rooms.slice(i, i + ROOMS_MAX).map(roomOf);
        const rows = await database.withTenants(
          [...new Set(tenants)],
          (tx) => tx<RunRow[]>`
            ${selectRuns(tx)}
            where (m.tenant_id, m.name) in (select * from unnest(${textArray(tenants)}::text[], ${textArray(names)}::text[]))
              and r.state in ('queued', 'claimed', 'streaming')
            order by r.created_at, r.id`,
          rooms.length > 1 ? 'gateway' : undefined,
        );
        live.push(...rows.map(storedRun));
      }
      return live;
    },

    claim: ({ tenant, models, worker, leaseMs, durationMaxMs }) =>
      database.withTenants(tenant === null ? '*' : [tenant], async (tx) => {
        const [claimed] = await tx<{ run: string }[]>`
          select * from tutti.claim_run(${tenant}::text, ${textArray(models)}::text[], ${worker}, ${leaseMs}::integer, ${durationMaxMs}::integer)`;
        if (!claimed) return undefined;
        const [row] = await tx<RunRow[]>`${selectRuns(tx)} where r.id = ${claimed.run}`;
        const [asked] = await tx<{ input: unknown }[]>`select input from tutti.runs where id = ${claimed.run}`;
        if (!row) throw new TuttiError('internal', 'Internal error.');
        return { run: storedRun(row), input: asked?.input };
      }),

    commit: (segments, leaseMs) => commit(database, segments, leaseMs),
    heartbeat: (runs, leaseMs) => commit(database, runs, leaseMs),

    end: (end) => one(end.tenant, async (tx) => endLocked(tx, await lockRun(tx, end.tenant, end.run), end)),

    retry: (retry) =>
      one(retry.tenant, async (tx) => retryLocked(tx, await lockHeld(tx, retry.tenant, retry.run, retry.fence), retry)),

    release: ({ tenant, run, fence, queueTtlMs }) =>
      one(tenant, async (tx) => {
        const row = await lockHeld(tx, tenant, run, fence);
        return requeueLocked(tx, row, row.attempt, queueTtlMs);
      }),

    async sweep(limit, queueTtlMs) {
      const due = await database.withTenants(
        '*',
        (tx) => tx<{ tenant: string; run: string }[]>`
          (select tenant_id as tenant, id as run from tutti.runs
            where state in ('claimed', 'streaming') and (lease_until < clock_timestamp() or deadline < clock_timestamp())
            order by lease_until limit ${limit})
          union all
          (select tenant_id, id from tutti.runs where state = 'queued' and deadline < clock_timestamp() limit ${limit})`,
      );
      const changes: RunChange[] = [];
      let next = 0;
      const work = async () => {
        for (let at = next++; at < due.length; at = next++) {
          const found = due[at];
          if (!found) return;
          const change = await database.withTenants([found.tenant], (tx) => sweepOne(tx, found.run, queueTtlMs));
          if (change) changes.push(change);
        }
      };
      await Promise.all(Array.from({ length: SWEEP_WIDTH }, work));
      return changes;
    },

    async segments(tenant, run, attempt, n, maxBytes) {
      const rows = await database.withTenants(
        [tenant],
        // The running sum ends the page; its first segment is given whatever its size.
        (tx) => tx<{ n: number; count: number; parts: string }[]>`
          select s.n, s.count, s.parts::text from (
            select s.n, s.count, s.parts, sum(octet_length(s.parts::text)) over (order by s.n) - octet_length(s.parts::text) as before
            from tutti.run_segments s
            where s.run_id = ${run} and s.attempt = ${attempt} and s.n + s.count > ${n}
          ) s where s.before < ${maxBytes} order by s.n`,
      );
      return rows.map((row) => ({
        tenant,
        run,
        attempt,
        fence: 0,
        n: row.n,
        count: row.count,
        parts: row.parts as JsonText,
      }));
    },
  };
}

async function find(tx: Tx, run: string): Promise<StoredRun | undefined> {
  const [row] = await tx<RunRow[]>`${selectRuns(tx)} where r.id = ${run}`;
  return row && storedRun(row);
}

async function create(
  tx: Tx,
  run: CreateRun,
  limits: { livePerTenant: number; livePerRoom: number; maxAttempts: number; queueTtlMs: number },
): Promise<RunChange> {
  const { id, tenant, room, model, initiator, mid } = run;
  // One creation of a tenant at a time: else two could both see the last free place, or neither see the other's mid.
  await tx`select pg_advisory_xact_lock(hashtextextended(${`tutti.runs ${tenant}`}, 0))`;
  if (mid !== undefined) {
    const [first] = await tx<RunRow[]>`
      ${selectRuns(tx)} where m.tenant_id = ${tenant} and m.name = ${room} and r.mid = ${mid}`;
    if (first) {
      if (!sameActor(first.initiator, initiator)) throw new TuttiError('conflict', 'This mid belongs to another run.');
      return { run: storedRun(first) };
    }
  }
  const [now] = await tx<{ live: number; here: number; at: number }[]>`
    select count(*)::integer as live,
      (count(*) filter (where room_id = (select id from tutti.rooms where tenant_id = ${tenant} and name = ${room})))::integer as here,
      floor(extract(epoch from clock_timestamp()) * 1000)::bigint as at
    from tutti.runs where tenant_id = ${tenant} and state in ('queued', 'claimed', 'streaming')`;
  if (!now) throw new TuttiError('internal', 'Internal error.');
  if (now.live >= limits.livePerTenant) {
    const message = `Your tenant has ${limits.livePerTenant} runs queued or running, which is its limit: wait for some to end.`;
    throw new TuttiError('quota_exceeded', message, { limit: 'runs_tenant' });
  }
  if (now.here >= limits.livePerRoom) {
    const message = `This room has ${limits.livePerRoom} runs queued or running, which is its limit: wait for some to end.`;
    throw new TuttiError('quota_exceeded', message, { limit: 'runs_room' });
  }
  const stored: StoredRun = {
    id,
    tenant,
    room,
    model,
    state: 'queued',
    attempt: 1,
    fence: 0,
    committed: 0,
    initiator,
    createdAt: now.at,
  };
  const append = {
    tenant,
    room,
    mid: `run:${id}:created`,
    type: 'run.created',
    data: `{"run":${toJsonText(toRun(stored))},"input":${run.input}}` as JsonText,
    by: toJsonText(initiator),
  };
  const [outcome] = await appendBatch(tx, [append]);
  if (!outcome || outcome === 'conflict') throw new TuttiError('internal', 'Internal error.');
  await tx`
    insert into tutti.runs
      (id, tenant_id, room_id, model, state, attempt, max_attempts, input, initiator, mid, deadline, created_at, queued_at)
    select ${id}, ${tenant}, m.id, ${model}, 'queued', 1, ${limits.maxAttempts}, ${run.input}::text::json,
      ${toJsonText(initiator)}::text::json, ${mid ?? null},
      clock_timestamp() + ${limits.queueTtlMs}::integer * interval '1 millisecond', ${now.at}, ${now.at}
    from tutti.rooms m where m.tenant_id = ${tenant} and m.name = ${room}`;
  const { tenant: _, ...event } = append;
  return { run: stored, event: { ...event, epoch: outcome.epoch, seq: outcome.seq, at: outcome.at } };
}

/** Locks a run that a worker holds. @throws TuttiError `fenced`, `not_found`. */
async function lockHeld(tx: Tx, tenant: string, run: string, fence: number): Promise<RunRow> {
  const row = await lockRun(tx, tenant, run);
  if (row.fence !== fence || isTerminal(row.state) || row.state === 'queued') throw FENCED();
  return row;
}

/** What is due for a run at this moment; another gateway may have seen to it. */
async function sweepOne(tx: Tx, run: string, queueTtlMs: number): Promise<RunChange | undefined> {
  const [row] = await tx<RunRow[]>`
    ${selectRuns(tx)} where r.id = ${run} and (
      r.state in ('claimed', 'streaming') and (r.lease_until < clock_timestamp() or r.deadline < clock_timestamp())
      or r.state = 'queued' and r.deadline < clock_timestamp()
    ) for no key update of r skip locked`;
  if (!row) return undefined;
  if (row.state === 'queued') {
    const error = { code: 'expired', message: 'No worker took the run in time.' };
    return endLocked(tx, row, {
      fence: null,
      state: 'expired',
      last: undefined,
      usage: undefined,
      error,
      meta: undefined,
      by: SWEEPER,
    });
  }
  const error = { code: 'worker_lost', message: 'The worker stopped before the run was finished.' };
  return retryLocked(tx, row, { error, by: SWEEPER, queueTtlMs });
}

async function commit(database: Database, pieces: readonly Piece[], leaseMs: number): Promise<CommitResult[]> {
  if (pieces.length === 0) return [];
  const numbers = (of: (piece: Piece) => number | null) => `{${pieces.map((piece) => of(piece) ?? 'null').join(',')}}`;
  const texts = (of: (piece: Piece) => string) => textArray(pieces.map(of));
  const rows = await database.withTenants(
    [...new Set(pieces.map((piece) => piece.tenant))],
    (tx) => tx<CommitRow[]>`
      select * from tutti.commit_runs(
        ${texts((piece) => piece.tenant)}::text[], ${texts((piece) => piece.run)}::text[],
        ${numbers((piece) => piece.attempt ?? null)}::integer[], ${numbers((piece) => piece.fence)}::integer[],
        ${numbers((piece) => piece.n ?? 0)}::integer[], ${numbers((piece) => piece.count ?? 0)}::integer[],
        ${texts((piece) => piece.parts ?? '[]')}::text[], ${leaseMs}::integer)`,
    pieces.length > 1 ? 'gateway' : undefined,
  );
  const results = new Map(rows.map((row) => [row.ordinal, row]));
  return pieces.map((_, at): CommitResult => {
    const row = results.get(at + 1);
    if (row?.status === 'committed') return { status: 'committed', committed: row.committed, cancelled: false };
    if (row?.status === 'ended' && isTerminal(row.state)) {
      return { status: 'ended', state: row.state, committed: row.committed };
    }
    return { status: 'fenced' };
  });
}

const sameActor = (a: Actor, b: Actor): boolean => a.kind === b.kind && a.id === b.id;
