import type { Part } from '../../../src/protocol/parts.js';
import type { Pushes } from '../../../src/protocol/pushes.js';
import type { LiveRun } from '../../../src/protocol/runs.js';
import { monotonic } from '../history.js';
import { OutputDigest } from '../output-digest.js';
import type { Ledger } from './ledger.js';

interface View {
  attempt: number;
  next: number;
  digest: OutputDigest;
}

/** Ended runs whose views are kept. */
const ENDED_KEPT = 100;

/** The runs of a room as one reader sees them by its pushes alone. Judges nothing: what it saw is written down. */
export class RunViews {
  readonly #ledger: Ledger;
  readonly #reader: string;
  readonly #views = new Map<string, View>();
  readonly #ended: string[] = [];

  constructor(ledger: Ledger, reader: string) {
    this.#ledger = ledger;
    this.#reader = reader;
  }

  /** What a join showed of the runs that live takes the place of everything before. */
  joined(runs: readonly Pick<LiveRun, 'id' | 'attempt' | 'next' | 'output'>[]): void {
    this.#views.clear();
    for (const { id, attempt, next, output } of runs) {
      const view = { attempt, next, digest: new OutputDigest().add(...output) };
      this.#views.set(id, view);
      this.#saw(id, view);
    }
  }

  readonly state = ({ run, attempt }: Pushes['run.state']): void => {
    const view = this.#views.get(run);
    if (!view) this.#views.set(run, { attempt, next: 0, digest: new OutputDigest() });
    else if (view.next === 0) view.attempt = attempt;
  };

  /** Parts that do not follow what this reader has are added all the same: the digest shows it. */
  readonly chunk = ({ run, attempt, n, parts }: Pushes['run.chunk']): void => {
    const view = this.#views.get(run) ?? { attempt, next: 0, digest: new OutputDigest() };
    this.#views.set(run, view);
    view.attempt = attempt;
    view.next = n + parts.length;
    view.digest.add(...parts);
    this.#saw(run, view);
  };

  readonly reset = ({ run, attempt }: Pushes['run.reset']): void => {
    this.#views.set(run, { attempt, next: 0, digest: new OutputDigest() });
    this.#ledger.write(['reset', monotonic(), this.#reader, run, attempt]);
  };

  /** An event of the log about a run; its end carries the final message. */
  event(type: string, data: unknown): void {
    if (type === 'run.created') return;
    const { run, message } = data as { run: { id: string; state: string }; message: { parts: Part[] } };
    // The log may be ahead of the output: what is streamed after the end still continues what was there before.
    this.#ended.push(run.id);
    if (this.#ended.length > ENDED_KEPT) this.#views.delete(this.#ended.shift() ?? '');
    const digest = new OutputDigest().add(...message.parts).toString();
    this.#ledger.write(['end', monotonic(), this.#reader, run.id, run.state, digest]);
  }

  #saw(run: string, { attempt, next, digest }: View): void {
    if (next === 0) return;
    this.#ledger.write(['chunk', monotonic(), this.#reader, run, attempt, next, digest.toString()]);
  }
}
