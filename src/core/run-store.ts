import type { EventRecord } from '../protocol/frames.js';
import type { Part } from '../protocol/parts.js';
import type { Actor, JsonText } from '../protocol/primitives.js';
import type { Run, RunError, TerminalRunState, Usage } from '../protocol/runs.js';
import type { RoomKey } from './keys.js';

/** A run as stored: what everybody sees, and what only the engine needs. */
export interface StoredRun extends Run {
  tenant: string;
  fence: number;
  /** Number of the next part that is not committed, within the attempt. */
  committed: number;
  /** Folded final output; only of an ended run. */
  output?: Part[];
}

export interface CreateRun {
  id: string;
  tenant: string;
  room: string;
  model: string;
  input: JsonText;
  initiator: Actor;
  mid: string | undefined;
}

/** Consecutive parts of a run, `parts[i]` has number `n + i`, as one JSON array text. */
export interface Segment {
  tenant: string;
  run: string;
  attempt: number;
  fence: number;
  n: number;
  count: number;
  parts: JsonText;
}

/** What a commit of a segment, or a heartbeat, found. `fenced`: the lease belongs to another; `ended`: the run is over. */
export type CommitResult =
  | { status: 'committed'; committed: number; cancelled: boolean }
  | { status: 'fenced' }
  | { status: 'ended'; state: TerminalRunState; committed: number };

export interface EndRun {
  tenant: string;
  run: string;
  /** The worker's fence, or `null` for a cancel by a viewer or the sweeper. */
  fence: number | null;
  state: TerminalRunState;
  last: Segment | undefined;
  usage: Usage | undefined;
  error: RunError | undefined;
  meta: JsonText | undefined;
  /** Who ends it; stands as `by` of the room's event. */
  by: Actor;
}

/** An ended or restarted run, with the event that entered the room's log, if any. */
export interface RunChange {
  run: StoredRun;
  event?: EventRecord;
}

/** The authority on runs. Every refusal is a TuttiError; an unreachable database is `log_unavailable`. */
export interface RunStore {
  /**
   * Stores the run and its event `run.created` in one transaction. The same `mid` by the same initiator in the same
   * room gives the first run again, without an event.
   * @throws TuttiError `quota_exceeded` past the live runs of the tenant or of the room, `conflict` for a mid of somebody else.
   */
  create(
    run: CreateRun,
    limits: { livePerTenant: number; livePerRoom: number; maxAttempts: number; queueTtlMs: number },
  ): Promise<RunChange>;
  get(tenant: string, run: string): Promise<StoredRun | undefined>;
  /** By id alone: for an operator's worker, which serves all tenants. */
  find(run: string): Promise<StoredRun | undefined>;
  /** Live runs of rooms, possibly of several tenants, in one query. */
  live(rooms: readonly RoomKey[]): Promise<StoredRun[]>;
  /**
   * Gives the oldest queued run of one of the models to a worker, tenants in turn; `tenant` null serves all.
   * `FOR UPDATE SKIP LOCKED`; the fence moves.
   */
  claim(claim: {
    tenant: string | null;
    models: readonly string[];
    worker: string;
    leaseMs: number;
    durationMaxMs: number;
  }): Promise<{ run: StoredRun; input: unknown } | undefined>;
  /** Commits segments of many runs in one statement and extends their leases; results in the order given. */
  commit(segments: readonly Segment[], leaseMs: number): Promise<CommitResult[]>;
  /** Extends leases without output; results in the order given. */
  heartbeat(runs: readonly { tenant: string; run: string; fence: number }[], leaseMs: number): Promise<CommitResult[]>;
  /**
   * One transaction: last segment, final state, usage, and the room's event `run.<state>` with the folded message.
   * Ending an ended run of the same fence (or by `null`) returns it unchanged, without an event.
   * @throws TuttiError `fenced`, `not_found`, `out_of_order` (`last` does not continue what is committed).
   */
  end(end: EndRun): Promise<RunChange>;
  /**
   * Gives a run back to the queue with `attempt + 1`, or ends it as failed when its attempts are used up. The fence
   * moves.
   * @throws TuttiError `fenced`, `not_found`.
   */
  retry(retry: {
    tenant: string;
    run: string;
    fence: number;
    error: RunError;
    by: Actor;
    queueTtlMs: number;
  }): Promise<RunChange>;
  /** Gives back a run whose worker vanished before it heard of it: the same attempt waits again. The fence moves. */
  release(release: { tenant: string; run: string; fence: number; queueTtlMs: number }): Promise<RunChange>;
  /** Retries or fails runs whose lease ran out or whose attempt took too long, expires those queued too long. */
  sweep(limit: number, queueTtlMs: number): Promise<RunChange[]>;
  /** Committed parts of an attempt from number `n` on, as consecutive segments, at most about `maxBytes`. */
  segments(tenant: string, run: string, attempt: number, n: number, maxBytes: number): Promise<Segment[]>;
}
