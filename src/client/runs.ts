import { Fold } from '../protocol/fold.js';
import type { Part } from '../protocol/parts.js';
import type { Pushes } from '../protocol/pushes.js';
import type { LiveRun, Run, RunState } from '../protocol/runs.js';

/** A run as this client knows it. The object is new at every change of its state; read output with {@link RunBook.output}. */
export interface RunView {
  readonly id: string;
  readonly model: string;
  readonly state: RunState;
  readonly attempt: number;
  /** What the server last told about the run; absent while only chunks of it came. */
  readonly run?: Run;
  readonly input?: unknown;
  /** The worker's own words about the finished message. */
  readonly meta?: unknown;
  /** Parts received of the attempt so far, unfolded. */
  readonly next: number;
  /** Whether the output is the final one from the room's log. */
  readonly final: boolean;
}

interface Entry {
  view: RunView;
  fold: Fold;
}

/** Ended runs remembered; past it the one that ended first is forgotten. Their messages stand in the room's log. */
const ENDED_MAX = 1000;

const END = /^run\.(completed|failed|cancelled|expired)$/;
const ended = (state: RunState): boolean => state !== 'queued' && state !== 'claimed' && state !== 'streaming';

/**
 * The runs of one room: live output folded as it streams, the final message from the room's log. Parts are taken by
 * their number, so a repeated chunk changes nothing, and a hole is answered with `gap`, never filled by guessing.
 */
export class RunBook {
  readonly #entries = new Map<string, Entry>();
  /** Ids of final runs, in the order of their ends. */
  readonly #final = new Set<string>();
  readonly #changed: (run: RunView) => void;
  readonly #gap: () => void;

  constructor(changed: (run: RunView) => void, gap: () => void) {
    this.#changed = changed;
    this.#gap = gap;
  }

  get(id: string): RunView | undefined {
    return this.#entries.get(id)?.view;
  }

  all(): RunView[] {
    return [...this.#entries.values()].map((entry) => entry.view);
  }

  /** The output so far, folded. The array is new at every call. */
  output(id: string): Part[] {
    return this.#entries.get(id)?.fold.parts() ?? [];
  }

  clear(): void {
    this.#entries.clear();
    this.#final.clear();
  }

  /** The live runs a join told of; they replace what was known of them. */
  joined(runs: readonly LiveRun[]): void {
    for (const { output, next, ...run } of runs) {
      const entry = this.#entries.get(run.id);
      if (entry?.view.final) continue;
      const fold = new Fold();
      fold.addAll(output);
      this.#set(run.id, fold, {
        ...base(entry),
        id: run.id,
        model: run.model,
        state: run.state,
        attempt: run.attempt,
        run,
        next,
      });
    }
  }

  /** An event of the room's log, live or from history, in any order. */
  event(event: Pushes['event']): void {
    const data = event.data as { run?: Run; input?: unknown; message?: { parts?: Part[] }; meta?: unknown } | null;
    const run = data?.run;
    if (typeof run !== 'object' || run === null) return;
    const entry = this.#entries.get(run.id);
    if (event.type === 'run.created') {
      const known = entry?.view;
      const state = known?.state ?? run.state;
      const view = { ...base(entry), id: run.id, model: run.model, state, attempt: known?.attempt ?? run.attempt };
      this.#set(run.id, entry?.fold ?? new Fold(), {
        ...view,
        run: known?.run ?? run,
        input: data?.input,
        next: known?.next ?? 0,
      });
    } else if (END.test(event.type)) {
      const fold = new Fold();
      fold.addAll(data?.message?.parts ?? []);
      const next = run.length ?? entry?.view.next ?? 0;
      const view = {
        ...base(entry),
        id: run.id,
        model: run.model,
        state: run.state,
        attempt: run.attempt,
        run,
        next,
        final: true,
      };
      this.#set(run.id, fold, data?.meta === undefined ? view : { ...view, meta: data.meta });
    }
  }

  state(push: Pushes['run.state']): void {
    const entry = this.#entries.get(push.run);
    if (entry && (entry.view.final || push.attempt < entry.view.attempt)) return;
    if (entry && push.attempt > entry.view.attempt) this.reset(push);
    const fold = this.#entries.get(push.run)?.fold ?? new Fold();
    const next = this.#entries.get(push.run)?.view.next ?? 0;
    const known = entry?.view.run;
    const run = known && { ...known, state: push.state, attempt: push.attempt, ...pick(push) };
    const view = { ...base(entry), id: push.run, model: push.model, state: push.state, attempt: push.attempt, next };
    this.#set(push.run, fold, run ? { ...view, run } : view);
  }

  reset(push: { run: string; attempt: number }): void {
    const entry = this.#entries.get(push.run);
    if (!entry || entry.view.final || push.attempt < entry.view.attempt) return;
    this.#set(push.run, new Fold(), { ...entry.view, attempt: push.attempt, state: 'queued', next: 0 });
  }

  chunk(push: Pushes['run.chunk']): void {
    let entry = this.#entries.get(push.run);
    if (entry?.view.final) return;
    if (entry && push.attempt < entry.view.attempt) return;
    if (!entry || push.attempt > entry.view.attempt) {
      const model = entry?.view.model ?? '';
      const view = { ...base(entry), id: push.run, model, state: 'streaming' as const, attempt: push.attempt, next: 0 };
      entry = { view, fold: new Fold() };
      this.#entries.set(push.run, entry);
    }
    if (push.n > entry.view.next) {
      this.#gap();
      return;
    }
    const fresh = push.parts.slice(entry.view.next - push.n);
    if (fresh.length === 0) return;
    entry.fold.addAll(fresh);
    const state = ended(entry.view.state) ? entry.view.state : 'streaming';
    this.#set(push.run, entry.fold, { ...entry.view, state, next: entry.view.next + fresh.length });
  }

  #set(id: string, fold: Fold, view: RunView): void {
    this.#entries.set(id, { view, fold });
    if (view.final) this.#remember(id);
    this.#changed(view);
  }

  #remember(id: string): void {
    this.#final.add(id);
    if (this.#final.size <= ENDED_MAX) return;
    for (const oldest of this.#final) {
      this.#final.delete(oldest);
      this.#entries.delete(oldest);
      return;
    }
  }
}

const base = (entry: Entry | undefined) => ({ ...entry?.view, final: entry?.view.final ?? false });

const pick = (push: Pushes['run.state']) => ({
  ...(push.usage ? { usage: push.usage } : {}),
  ...(push.error ? { error: push.error } : {}),
});
