import { type Entry, type History, HistoryWriter, monotonic, WriteAheadHistory } from '../history.js';
import type { LoadConfig } from './config.js';
import { Standstill } from './standstill.js';

/** What one process counted; see {@link Status} of the process. */
export interface Counts {
  sent: number;
  acked: number;
  nacked: number;
  unknown: number;
  received: number;
  asked: number;
  runsEnded: number;
  leaks: number;
  /** Writes under old fences, or one that nobody was given, that were refused as they should be. */
  fenced: number;
}

/**
 * What all clients of a process share: the history they write, what they counted, how far rooms are known to be, and what
 * must not be seen by whom.
 */
export class Ledger {
  readonly counts: Counts = {
    sent: 0,
    acked: 0,
    nacked: 0,
    unknown: 0,
    received: 0,
    asked: 0,
    runsEnded: 0,
    leaks: 0,
    fenced: 0,
  };
  /** Runs that were asked for and whose end no reader of this process has seen. */
  readonly openRuns = new Set<string>();
  /** Runs of whoever asked whose end was seen: that of one may be seen before the answer that it was made. */
  readonly #endedRuns = new Set<string>();
  readonly standstill = new Standstill(monotonic());
  readonly #history: History;
  readonly #heads = new Map<string, number>();
  readonly #canaries: { owner: string; canary: string }[];

  constructor(config: Pick<LoadConfig, 'history' | 'writeAhead' | 'tenants'>) {
    this.#history = config.writeAhead ? new WriteAheadHistory(config.history) : new HistoryWriter(config.history);
    this.#canaries = config.tenants.map(({ id, canary }) => ({ owner: id, canary }));
  }

  write(entry: Entry): void {
    this.#history.write(entry);
  }

  close(): Promise<void> {
    return this.#history.close();
  }

  /** An event at `seq` is known to be in a room. */
  sawHead(tenant: string, room: string, epoch: string, seq: number): void {
    const key = `${tenant} ${room} ${epoch}`;
    if (seq > (this.#heads.get(key) ?? 0)) this.#heads.set(key, seq);
  }

  head(tenant: string, room: string, epoch: string): number {
    return this.#heads.get(`${tenant} ${room} ${epoch}`) ?? 0;
  }

  /** A run was asked for and has an id. */
  asked(run: string, tenant: string, room: string): void {
    this.counts.asked++;
    if (this.#endedRuns.has(run)) this.counts.runsEnded++;
    else this.openRuns.add(run);
    this.write(['ask', monotonic(), run, tenant, room]);
  }

  /** Somebody was told the end of a run. */
  ended(run: string): void {
    this.#endedRuns.add(run);
    if (this.openRuns.delete(run)) this.counts.runsEnded++;
  }

  /** Looks for the canaries of other tenants in what a client of `tenant` received, before anything parses it. */
  searchFor(tenant: string, reader: string, where: string): (text: unknown) => void {
    const others = this.#canaries.filter(({ owner }) => owner !== tenant);
    return (text) => {
      if (typeof text !== 'string') return;
      for (const { owner, canary } of others) {
        if (!text.includes(canary)) continue;
        this.counts.leaks++;
        this.write(['leak', monotonic(), reader, tenant, owner, `${where}: ${text.slice(0, 80)}`]);
      }
    };
  }
}
