import type { RunWatcher } from '../../src/core/runs.js';
import { foldParts } from '../../src/protocol/fold.js';
import { type Frame, payloadOf } from '../../src/protocol/frames.js';
import type { Part } from '../../src/protocol/parts.js';
import type { Pushes } from '../../src/protocol/pushes.js';
import { isTerminal, type LiveRun, type Run, type RunState } from '../../src/protocol/runs.js';
import { begins, foldedOf, jsonOf } from './sim-worker.js';

interface Seen {
  attempt: number;
  next: number;
  state: RunState;
  parts: Part[];
}

/** Which fences an attempt was computed under: one, but where a claim was given back unheard. */
export class Fences {
  readonly #of = new Map<string, Set<number>>();

  add(run: string, attempt: number, fence: number): void {
    const key = `${run} ${attempt}`;
    this.#of.set(key, (this.#of.get(key) ?? new Set()).add(fence));
  }

  /** @throws Error unless these are parts `n`… of what one of the attempt's workers said. */
  check(run: string, attempt: number, n: number, parts: readonly Part[]): void {
    if (parts.length === 0) return;
    const said = JSON.stringify(parts);
    if (this.#some(run, attempt, (fence) => jsonOf(fence, n, n + parts.length) === said)) return;
    throw new Error(`run ${run} attempt ${attempt}: no worker said ${said} as part ${n}`);
  }

  /** The same of folded output of `length` parts. */
  checkFolded(run: string, attempt: number, length: number, output: readonly Part[]): void {
    if (length === 0 && output.length === 0) return;
    const said = JSON.stringify(output);
    if (this.#some(run, attempt, (fence) => foldedOf(fence, length) === said)) return;
    throw new Error(`run ${run} attempt ${attempt}: ${said} is no fold of ${length} parts`);
  }

  /** The same of output that need not have all that was said, with its deltas cut anywhere. */
  checkBeginning(run: string, attempt: number, output: readonly Part[]): void {
    const torn = output.find((part) => part.type === 'text-delta' && /\p{Surrogate}/u.test(part.delta));
    if (torn) throw new Error(`run ${run} attempt ${attempt}: ${JSON.stringify(torn)} is half a character`);
    if (output.length === 0 || this.#some(run, attempt, (fence) => begins(fence, output))) return;
    throw new Error(`run ${run} attempt ${attempt}: ${JSON.stringify(output)} is no beginning of what was said`);
  }

  #some(run: string, attempt: number, said: (fence: number) => boolean): boolean {
    for (const fence of this.#of.get(`${run} ${attempt}`) ?? []) if (said(fence)) return true;
    return false;
  }
}

/** Holds that what one reader of a room is told of runs never contradicts itself or their workers. */
export class RunWitness {
  readonly runs = new Map<string, Seen>();
  /** Ends as the room's log has them. */
  readonly ends = new Map<string, Run>();
  readonly created = new Set<string>();
  /** After a resync nothing is known until the reader has joined again. */
  lost = true;

  constructor(
    readonly fences: Fences,
    /** Whether a join may bring less than all there is, and the rest in pages. */
    readonly paged = false,
  ) {}

  joined(live: readonly LiveRun[]): void {
    this.lost = false;
    this.runs.clear();
    for (const { id, attempt, next, output, state } of live) {
      if (this.paged) this.fences.checkBeginning(id, attempt, output);
      else this.fences.checkFolded(id, attempt, next, output);
      if (isTerminal(state)) throw new Error(`run ${id} is ${state} and counts as live`);
      this.runs.set(id, { attempt, next, state, parts: [...output] });
    }
  }

  resynced(): void {
    this.lost = true;
    this.runs.clear();
    this.ends.clear();
    this.created.clear();
  }

  event(text: string): void {
    const { type, data } = JSON.parse(text) as Pushes['event'];
    if (!type.startsWith('run.')) return;
    const { run, message } = data as { run: Run; message?: { parts: Part[] } };
    if (type === 'run.created') {
      if (this.created.has(run.id)) throw new Error(`run ${run.id} is created twice`);
      this.created.add(run.id);
      return;
    }
    if (this.ends.has(run.id)) throw new Error(`run ${run.id} ends twice`);
    this.ends.set(run.id, run);
    this.fences.checkFolded(run.id, run.attempt, run.length ?? 0, message?.parts ?? []);
  }

  /** `live`: it went to all readers alike. */
  frame(frame: Frame, live: boolean): void {
    if (this.lost) return;
    if (frame.startsWith('42["run.chunk"')) this.#chunk(JSON.parse(payloadOf(frame, 'run.chunk')), live);
    else if (frame.startsWith('42["run.state"')) this.#state(JSON.parse(payloadOf(frame, 'run.state')));
    else if (frame.startsWith('42["run.reset"')) this.#reset(JSON.parse(payloadOf(frame, 'run.reset')));
  }

  #chunk({ run: id, attempt, n, parts }: Pushes['run.chunk'], live: boolean): void {
    const run = this.runs.get(id);
    if (!run || run.attempt !== attempt) throw new Error(`run ${id}: chunk of attempt ${attempt} without a reset`);
    if (isTerminal(run.state)) throw new Error(`run ${id}: a chunk after the end`);
    if (n !== run.next) throw new Error(`run ${id}: chunk ${n} where ${run.next} is due`);
    if (live && this.paged) this.fences.checkFolded(id, attempt, n, foldParts(run.parts));
    if (live || !this.paged) this.fences.check(id, attempt, n, parts);
    run.parts.push(...parts);
    run.next += parts.length;
    if (this.paged) this.fences.checkBeginning(id, attempt, run.parts);
  }

  #state({ run: id, state, attempt, length }: Pushes['run.state']): void {
    const run = this.runs.get(id) ?? { attempt, next: 0, state, parts: [] };
    if (run.attempt !== attempt) throw new Error(`run ${id}: state of attempt ${attempt} without a reset`);
    if (this.runs.has(id) && isTerminal(run.state)) throw new Error(`run ${id}: ${state} after ${run.state}`);
    if (isTerminal(state) && length !== run.next) throw new Error(`run ${id}: ${state} at ${run.next} of ${length}`);
    if (isTerminal(state)) this.fences.checkFolded(id, attempt, run.next, foldParts(run.parts));
    this.runs.set(id, { ...run, state });
  }

  #reset({ run: id, attempt }: Pushes['run.reset']): void {
    const run = this.runs.get(id);
    if (run && isTerminal(run.state)) throw new Error(`run ${id}: a reset after the end`);
    if (run && attempt < run.attempt) throw new Error(`run ${id}: a reset to attempt ${attempt}`);
    this.runs.set(id, { attempt, next: 0, state: 'queued', parts: [] });
  }
}

/** Holds the same for a stream of one run's output, over its reconnections. */
export class StreamWitness {
  from: { attempt: number; n: number } | undefined;
  ended: Run | undefined;
  problem: Error | undefined;

  constructor(
    readonly run: string,
    readonly fences: Fences,
  ) {}

  /** One connection. Calls count as long as `current` says so. */
  watcher(current: () => boolean, drained: () => Promise<boolean>): RunWatcher {
    return {
      parts: (attempt, n, parts) =>
        this.#see(current, () => {
          this.from ??= { attempt, n: 0 };
          if (attempt !== this.from.attempt || n !== this.from.n) {
            throw new Error(`run ${this.run}: ${attempt}:${n} where ${this.from.attempt}:${this.from.n} is due`);
          }
          this.fences.check(this.run, attempt, n, parts);
          this.from = { attempt, n: n + parts.length };
        }),
      reset: (attempt) =>
        this.#see(current, () => {
          this.from = { attempt, n: 0 };
        }),
      end: (run) =>
        this.#see(current, () => {
          if ((run.length ?? 0) !== (this.from?.n ?? 0)) {
            throw new Error(`run ${this.run}: a stream ends at ${this.from?.n} of ${run.length}`);
          }
          this.ended = run;
        }),
      drained: async () => current() && drained(),
    };
  }

  #see(current: () => boolean, what: () => void): void {
    if (!current() || this.problem) return;
    try {
      if (this.ended) throw new Error(`run ${this.run}: a stream goes on after its end`);
      what();
    } catch (problem) {
      this.problem = problem as Error;
    }
  }
}
