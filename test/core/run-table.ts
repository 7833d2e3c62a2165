import { type RoomKey, roomKey } from '../../src/core/keys.js';
import type { CommitResult, EndRun, RunChange, RunStore, Segment, StoredRun } from '../../src/core/run-store.js';
import { toRun } from '../../src/core/run-wire.js';
import { TuttiError } from '../../src/errors.js';
import { Fold } from '../../src/protocol/fold.js';
import type { Part } from '../../src/protocol/parts.js';
import { type Actor, type JsonText, toJsonText } from '../../src/protocol/primitives.js';
import { isTerminal, type RunError } from '../../src/protocol/runs.js';
import type { SimRooms } from './sim-log.js';

export interface RunRow extends StoredRun {
  maxAttempts: number;
  input: unknown;
  mid: string | undefined;
  leaseUntil: number;
  deadline: number;
  queuedAt: number;
  /** Segments by attempt and first number, as the table's key has them. */
  segments: Map<string, Segment>;
}

/** A call of the store, made of one transaction or several; each runs at one moment, what is between them takes time. */
export type Transact = <T>(work: () => T) => Promise<T>;

const SWEEPER: Actor = { kind: 'operator', id: 'tutti' };
const fenced = () => new TuttiError('fenced', 'The run is no longer yours.');
const live = ({ state }: StoredRun) => !isTerminal(state);
const held = ({ state }: StoredRun) => state === 'claimed' || state === 'streaming';

/** The runs of all tenants with the semantics of `src/db/run-store.ts`; both pass test/runs/store.test.ts. */
export class RunTable {
  readonly rows = new Map<string, RunRow>();
  readonly #turns = new Map<string, number>();

  constructor(
    readonly rooms: SimRooms,
    readonly now: () => number,
  ) {
    rooms.onErased = (key) => {
      for (const row of this.rows.values()) if (keyOf(row) === key) this.rows.delete(row.id);
    };
  }

  /** The store as one gateway has it. */
  store(transact: Transact): RunStore {
    const get = (id: string, tenant?: string) => {
      const row = this.rows.get(id);
      return row && (tenant === undefined || row.tenant === tenant) ? stored(row) : undefined;
    };
    return {
      create: (run, limits) => transact(() => this.#create(run, limits)),
      get: (tenant, run) => transact(() => get(run, tenant)),
      find: (run) => transact(() => get(run)),
      live: (rooms) =>
        transact(() =>
          [...this.rows.values()]
            .filter((row) => live(row) && rooms.includes(keyOf(row)))
            .sort((a, b) => a.createdAt - b.createdAt || (a.id < b.id ? -1 : 1))
            .map(stored),
        ),
      claim: (claim) => transact(() => this.claim(claim)),
      commit: (segments, leaseMs) => transact(() => segments.map((piece) => this.#commit(piece, leaseMs))),
      heartbeat: (runs, leaseMs) => transact(() => runs.map((piece) => this.#commit(piece, leaseMs))),
      end: (end) => transact(() => this.#end(this.#row(end.tenant, end.run), end)),
      retry: (retry) => transact(() => this.#retry(this.#held(retry.tenant, retry.run, retry.fence), retry)),
      release: ({ tenant, run, fence, queueTtlMs }) =>
        transact(() => {
          const row = this.#held(tenant, run, fence);
          return this.#requeue(row, row.attempt, queueTtlMs);
        }),
      sweep: async (limit, queueTtlMs) => {
        const due = await transact(() => [...this.rows.values()].filter((row) => this.#due(row)).slice(0, limit));
        const changes: RunChange[] = [];
        for (const { id } of due) {
          const change = await transact(() => this.#sweepOne(id, queueTtlMs));
          if (change) changes.push(change);
        }
        return changes;
      },
      segments: (tenant, run, attempt, n, maxBytes) =>
        transact(() => {
          const found = this.#segments(run, attempt).filter((one) => one.tenant === tenant && one.n + one.count > n);
          let before = 0;
          return found.filter(({ parts }) => {
            const fits = before < maxBytes;
            before += Buffer.byteLength(parts);
            return fits;
          });
        }),
    };
  }

  #create(
    { id, tenant, room, model, input, initiator, mid }: Parameters<RunStore['create']>[0],
    { livePerTenant, livePerRoom, maxAttempts, queueTtlMs }: Parameters<RunStore['create']>[1],
  ): RunChange {
    const ofTenant = [...this.rows.values()].filter((row) => row.tenant === tenant);
    const first = ofTenant.find((row) => mid !== undefined && row.room === room && row.mid === mid);
    if (first && (first.initiator.kind !== initiator.kind || first.initiator.id !== initiator.id)) {
      throw new TuttiError('conflict', 'This mid belongs to another run.');
    }
    if (first) return { run: stored(first) };
    if (ofTenant.filter(live).length >= livePerTenant) throw new TuttiError('quota_exceeded', 'Too many runs.');
    if (ofTenant.filter((row) => live(row) && row.room === room).length >= livePerRoom) {
      throw new TuttiError('quota_exceeded', 'Too many runs in this room.');
    }
    const at = this.now();
    const row: RunRow = {
      ...{ id, tenant, room, model, state: 'queued', attempt: 1, fence: 0, committed: 0, initiator, createdAt: at },
      ...{ maxAttempts, input: JSON.parse(input), mid, leaseUntil: 0, deadline: at + queueTtlMs, queuedAt: at },
      segments: new Map(),
    };
    const data = `{"run":${toJsonText(toRun(stored(row)))},"input":${input}}` as JsonText;
    const event = this.#append(row, 'created', 'run.created', data, initiator);
    this.rows.set(id, row);
    return { run: stored(row), event };
  }

  claim({ tenant, models, leaseMs, durationMaxMs }: Parameters<RunStore['claim']>[0]) {
    const waiting = [...this.rows.values()]
      .filter((row) => row.state === 'queued' && models.includes(row.model) && row.deadline > this.now())
      .filter((row) => tenant === null || row.tenant === tenant)
      .sort((a, b) => a.queuedAt - b.queuedAt || (a.id < b.id ? -1 : 1));
    const turn = (row: RunRow) => (tenant === null ? (this.#turns.get(row.tenant) ?? -1) : 0);
    const [row] = waiting.sort((a, b) => turn(a) - turn(b));
    if (!row) return undefined;
    if (tenant === null) this.#turns.set(row.tenant, Math.max(0, ...this.#turns.values()) + 1);
    const now = this.now();
    Object.assign(row, { state: 'claimed', fence: row.fence + 1, committed: 0, startedAt: now });
    Object.assign(row, { leaseUntil: now + leaseMs, deadline: now + durationMaxMs });
    return { run: stored(row), input: row.input };
  }

  #commit(piece: Pick<Segment, 'tenant' | 'run' | 'fence'> & Partial<Segment>, leaseMs: number): CommitResult {
    const row = this.rows.get(piece.run);
    if (!row || row.tenant !== piece.tenant || row.fence !== piece.fence) return { status: 'fenced' };
    if (piece.attempt !== undefined && piece.attempt !== row.attempt) return { status: 'fenced' };
    if (isTerminal(row.state)) return { status: 'ended', state: row.state, committed: row.committed };
    if (row.state === 'queued') return { status: 'fenced' };
    const { n = 0, count = 0, parts = '[]' } = piece;
    if (n <= row.committed && n + count > row.committed) {
      this.#insert(row, JSON.parse(parts).slice(row.committed - n));
      row.state = 'streaming';
    }
    row.leaseUntil = this.now() + leaseMs;
    return { status: 'committed', committed: row.committed, cancelled: false };
  }

  #insert(row: RunRow, parts: Part[]): void {
    const { tenant, id: run, attempt, fence, committed: n } = row;
    const key = `${attempt} ${n}`;
    if (row.segments.has(key)) throw new TuttiError('internal', 'This segment is stored already.');
    row.segments.set(key, { tenant, run, attempt, fence, n, count: parts.length, parts: toJsonText(parts) });
    row.committed += parts.length;
    row.firstTokenAt ??= this.now();
  }

  #end(row: RunRow, end: Omit<EndRun, 'tenant' | 'run'>): RunChange {
    if (end.fence !== null && end.fence !== row.fence) throw fenced();
    if (isTerminal(row.state)) return { run: stored(row) };
    if (end.fence !== null && row.state === 'queued') throw fenced();
    this.#commitLast(row, end);
    const fold = new Fold();
    for (const { parts } of this.#segments(row.id, row.attempt)) fold.addAll(JSON.parse(parts) as Part[]);
    Object.assign(row, { state: end.state, length: row.committed, finishedAt: this.now(), output: fold.parts() });
    if (end.usage) row.usage = end.usage;
    if (end.error) row.error = end.error;
    const message = toJsonText({ role: 'assistant', parts: fold.parts() });
    const meta = end.meta === undefined ? '' : `,"meta":${end.meta}`;
    const data = `{"run":${toJsonText(toRun(stored(row)))},"message":${message}${meta}}` as JsonText;
    const type = `run.${end.state === 'expired' ? 'failed' : end.state}`;
    return { run: stored(row), event: this.#append(row, 'end', type, data, end.by) };
  }

  #commitLast(row: RunRow, { last, fence }: Pick<EndRun, 'last' | 'fence'>): void {
    if (!last || last.n + last.count <= row.committed) return;
    const foreign = last.fence !== row.fence || last.attempt !== row.attempt || row.state === 'queued';
    if ((foreign || last.n > row.committed) && fence === null) return;
    if (foreign) throw fenced();
    if (last.n > row.committed) throw new TuttiError('out_of_order', 'Missing.', { expected: row.committed });
    this.#insert(row, JSON.parse(last.parts).slice(row.committed - last.n));
  }

  #retry(row: RunRow, { error, by, queueTtlMs }: { error: RunError; by: Actor; queueTtlMs: number }): RunChange {
    if (row.attempt >= row.maxAttempts) {
      const nothing = { last: undefined, usage: undefined, meta: undefined };
      return this.#end(row, { fence: null, state: 'failed', ...nothing, error, by });
    }
    row.segments.clear();
    return this.#requeue(row, row.attempt + 1, queueTtlMs);
  }

  #requeue(row: RunRow, attempt: number, queueTtlMs: number): RunChange {
    Object.assign(row, { state: 'queued', attempt, fence: row.fence + 1, committed: 0, leaseUntil: 0 });
    row.deadline = this.now() + queueTtlMs;
    delete row.startedAt;
    delete row.firstTokenAt;
    return { run: stored(row) };
  }

  #due(row: RunRow): boolean {
    const now = this.now();
    return held(row) ? row.leaseUntil < now || row.deadline < now : row.state === 'queued' && row.deadline < now;
  }

  #sweepOne(run: string, queueTtlMs: number): RunChange | undefined {
    const row = this.rows.get(run);
    if (!row || !this.#due(row)) return undefined;
    if (row.state !== 'queued') {
      const error = { code: 'worker_lost', message: 'The worker stopped before the run was finished.' };
      return this.#retry(row, { error, by: SWEEPER, queueTtlMs });
    }
    const error = { code: 'expired', message: 'No worker took the run in time.' };
    const nothing = { last: undefined, usage: undefined, meta: undefined };
    return this.#end(row, { fence: null, state: 'expired', ...nothing, error, by: SWEEPER });
  }

  #segments(run: string, attempt: number): Segment[] {
    const all = [...(this.rows.get(run)?.segments.values() ?? [])];
    return all.filter((one) => one.attempt === attempt).sort((a, b) => a.n - b.n);
  }

  #append({ id, tenant, room }: RunRow, what: string, type: string, data: JsonText, by: Actor) {
    const event = { room, mid: `run:${id}:${what}`, type, data, by: toJsonText(by) };
    const { epoch, seq, at } = this.rooms.append({ tenant, ...event });
    return { ...event, epoch, seq, at };
  }

  #row(tenant: string, run: string): RunRow {
    const row = this.rows.get(run);
    if (!row || row.tenant !== tenant) throw new TuttiError('not_found', 'There is no such run.');
    return row;
  }

  #held(tenant: string, run: string, fence: number): RunRow {
    const row = this.#row(tenant, run);
    if (row.fence !== fence || !held(row)) throw fenced();
    return row;
  }
}

const keyOf = ({ tenant, room }: StoredRun): RoomKey => roomKey(tenant, room);

/** What a query gives. */
function stored(row: RunRow): StoredRun {
  const { maxAttempts: _, input: _i, mid: _m, leaseUntil: _l, deadline: _d, queuedAt: _q, segments: _s, ...run } = row;
  return run;
}
