import { Fold } from '../protocol/fold.js';
import { encodePush } from '../protocol/frames.js';
import type { Part } from '../protocol/parts.js';
import type { ResetReason } from '../protocol/pushes.js';
import { isTerminal, type Run, type RunState } from '../protocol/runs.js';
import type { Clock } from './clock.js';
import type { RoomOutput } from './feeds.js';
import { type RoomKey, roomOf, tenantOf } from './keys.js';
import type { RunStore } from './run-store.js';
import { type Chunk, partsOf, resetFrame, stateFrame } from './run-wire.js';
import { countLimit, type Logger, type Metrics } from './telemetry.js';

/** How long a gap may wait for a chunk that was merely overtaken, in ms. */
const REORDER_MS = 50;
/** How often a gap is looked for in the store, where parts come some time after they were announced, in ms. */
const HEAL_EVERY_MS = 250;
/** Chunks kept while the one before them is missing, in characters of their frames; what is over comes from the store. */
const AHEAD_MAX_BYTES = 512 * 1024;
/** Output read from the store at once, in bytes. */
const PAGE_BYTES = 256 * 1024;
/** Recent unfolded output kept for streams of one run, in parts; a slower stream reads the store. */
const TAIL_MAX_PARTS = 4096;

const rank: Record<RunState, number> = {
  queued: 0,
  claimed: 1,
  streaming: 2,
  completed: 3,
  failed: 3,
  cancelled: 3,
  expired: 3,
};

/** What a state change says of a run; a {@link Run} says it all. */
export type StateNews = Pick<Run, 'state' | 'attempt' | 'length' | 'usage' | 'error'>;

/**
 * One live run as the readers on this gateway see it. Readers get its parts consecutively from 0 in each attempt,
 * whatever is lost, repeated or overtaken between gateways, and its end only after all of its output.
 */
export class RunView {
  readonly id: string;
  /** Number of the part that readers get next. */
  next = 0;
  /** How often readers had to forget the output; moves with every `run.reset`. */
  resets = 0;
  /** Why the last of them was. */
  resetReason: ResetReason = 'worker_lost';
  /** The run as it ended, once the whole output and the end were told. */
  ended: Run | undefined;
  /** Unfolded parts from number `next - tail.length` on; kept only while somebody watches. */
  tail: Part[] = [];
  /** Called after every change, while the view lasts and once when it is over. */
  readonly watchers = new Set<() => void>();
  readonly #room: RoomKey;
  readonly #store: RunStore;
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #metrics: Metrics;
  readonly #out: RoomOutput;
  readonly #onEnd: () => void;
  #run: Run;
  #told = -1;
  #fold = new Fold();
  #ahead: Chunk[] = [];
  #aheadBytes = 0;
  #final: Run | undefined;
  #healing = false;
  #healAgain = false;
  #cancelHeal: (() => void) | undefined;
  #silent = false;
  #closed = false;
  #endReads = 0;

  /** `onEnd` is called once, right before readers are told of the end. */
  constructor(
    room: RoomKey,
    run: Run,
    deps: { store: RunStore; log: Logger; rooms: RoomOutput; clock: Clock; metrics: Metrics },
    onEnd: () => void,
  ) {
    this.id = run.id;
    this.#room = room;
    this.#run = run;
    this.#store = deps.store;
    this.#log = deps.log;
    this.#clock = deps.clock;
    this.#metrics = deps.metrics;
    this.#out = deps.rooms;
    this.#onEnd = onEnd;
  }

  /** The run as readers were told of it, before its end. */
  get run(): Run {
    return this.#run;
  }

  get attempt(): number {
    return this.#run.attempt;
  }

  /** Whether readers were told of the end. */
  get over(): boolean {
    return this.#closed;
  }

  /** Whether this ended before the run did: what readers got may not be what the store has. */
  get lost(): boolean {
    return this.#closed && !this.ended;
  }

  /** How far the states got that readers were told; a fresh attempt has told them nothing: -1. */
  get told(): number {
    return this.#told;
  }

  /** The output so far, folded, {@link next} parts of it; see {@link Fold.shared}. */
  get output(): readonly Part[] {
    return this.#fold.shared();
  }

  /** Tells readers of a run they do not know yet. */
  introduce(): void {
    this.#tell(this.#run.state);
  }

  /** Loads the output so far before anybody reads it. @throws TuttiError `log_unavailable`. */
  async load(): Promise<void> {
    this.loaded();
    this.#silent = true;
    try {
      while (await this.#page());
    } finally {
      this.#silent = false;
    }
  }

  /** Readers get the run with the snapshot: nothing has to be said of its state. */
  loaded(): void {
    this.#told = rank[this.#run.state];
  }

  /** A chunk from a worker here or from another gateway, in any order and any number of times. */
  chunk(chunk: Chunk): void {
    if (this.#final || this.#closed || chunk.attempt < this.attempt) return;
    if (chunk.attempt > this.attempt) this.reset(chunk.attempt, 'worker_lost');
    if (chunk.n + chunk.count <= this.next) return;
    if (chunk.n > this.next) {
      this.#hold(chunk);
      return;
    }
    this.#apply(chunk.n, partsOf(chunk), chunk);
    this.#release();
  }

  /** A new attempt: readers forget the output. */
  reset(attempt: number, reason: ResetReason): void {
    if (this.#final || this.#closed || attempt <= this.attempt) return;
    const { startedAt: _, firstTokenAt: _f, ...run } = this.#run;
    this.#run = { ...run, attempt, state: 'queued' };
    this.#forget(reason);
  }

  /** A state, from wherever; older ones are ignored. `run` is the whole run where it is known. */
  state(news: StateNews, run?: Run): void {
    if (this.#final || this.#closed || news.attempt < this.attempt) return;
    this.reset(news.attempt, 'worker_lost');
    if (isTerminal(news.state)) {
      this.#final = run ?? { ...this.#run, ...news };
      this.#dropAhead();
      this.#settle();
      return;
    }
    // What the store says of times is taken even where the state is old news.
    if (run) this.#run = { ...run, state: this.#run.state };
    this.#tell(news.state);
  }

  /** The store has parts below `committed`: what readers lack of them was lost on the way. */
  committedTo(attempt: number, committed: number): void {
    if (attempt === this.attempt && committed > this.next) this.#heal();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#cancelHeal?.();
    this.#changed();
  }

  #tell(state: RunState): void {
    if (rank[state] <= this.#told) return;
    this.#told = rank[state];
    this.#run = { ...this.#run, state };
    this.#out.pushRun(this.#room, stateFrame(this.#run));
    this.#changed();
  }

  #forget(reason: ResetReason): void {
    this.next = 0;
    this.resets++;
    this.resetReason = reason;
    this.tail = [];
    this.#told = -1;
    this.#fold = new Fold();
    this.#dropAhead();
    this.#out.pushRun(this.#room, resetFrame(roomOf(this.#room), this.id, this.attempt, reason));
    this.#changed();
  }

  #apply(n: number, parts: readonly Part[], chunk?: Chunk): void {
    const rest = n === this.next ? parts : parts.slice(this.next - n);
    if (rest.length === 0) return;
    if (!this.#silent) this.#tell('streaming');
    this.#fold.addAll(rest);
    if (this.watchers.size > 0) this.#keepTail(rest);
    const first = this.next;
    this.next += rest.length;
    if (!this.#silent) this.#out.pushRun(this.#room, chunk && n === first ? chunk.frame : this.#frame(first, rest));
    this.#changed();
  }

  #frame(n: number, parts: readonly Part[]) {
    const { room, id: run, attempt } = this.#run;
    return encodePush('run.chunk', { room, run, attempt, n, parts: [...parts] });
  }

  #keepTail(parts: readonly Part[]): void {
    for (const part of parts) this.tail.push(part);
    if (this.tail.length > TAIL_MAX_PARTS) this.tail = this.tail.slice(-TAIL_MAX_PARTS / 2);
  }

  #hold(chunk: Chunk): void {
    if (this.#aheadBytes + chunk.frame.length <= AHEAD_MAX_BYTES) {
      this.#ahead.push(chunk);
      this.#aheadBytes += chunk.frame.length;
    } else countLimit(this.#metrics, 'run_ahead');
    this.#healIn(REORDER_MS);
  }

  /** Applies what waited for the parts before it. */
  #release(): void {
    if (this.#ahead.length === 0) return;
    const waiting = this.#ahead.sort((a, b) => a.n - b.n);
    this.#dropAhead();
    for (const chunk of waiting) {
      if (chunk.attempt !== this.attempt || chunk.n + chunk.count <= this.next) continue;
      if (chunk.n > this.next) {
        this.#ahead.push(chunk);
        this.#aheadBytes += chunk.frame.length;
      } else this.#apply(chunk.n, partsOf(chunk), chunk);
    }
  }

  #dropAhead(): void {
    this.#ahead = [];
    this.#aheadBytes = 0;
  }

  #healIn(ms: number): void {
    if (this.#closed || this.#healing) return;
    this.#cancelHeal ??= this.#clock.after(ms, () => this.#heal());
  }

  #heal(): void {
    this.#cancelHeal?.();
    this.#cancelHeal = undefined;
    if (this.#healing) {
      this.#healAgain = true;
      return;
    }
    void this.#healNow();
  }

  async #healNow(): Promise<void> {
    this.#healing = true;
    try {
      do {
        this.#healAgain = false;
        while (await this.#page());
      } while (this.#healAgain && !this.#closed);
    } catch (error) {
      this.#log.warn({ err: error, run: this.id }, 'Run output could not be read; trying again.');
    } finally {
      this.#healing = false;
    }
    if (this.#closed) return;
    if (this.#final) this.#settle();
    else if (this.#ahead.length > 0) this.#healIn(HEAL_EVERY_MS);
  }

  /** Reads one page of output from the store; `true` where there may be more. */
  async #page(): Promise<boolean> {
    const { attempt, next } = this;
    const tenant = tenantOf(this.#room);
    const segments = await this.#store.segments(tenant, this.id, attempt, next, PAGE_BYTES);
    if (this.#closed) return false;
    if (this.attempt !== attempt) return true;
    for (const { n, parts } of segments) {
      if (n <= this.next) this.#apply(n, JSON.parse(parts) as Part[]);
    }
    this.#release();
    return this.next > next;
  }

  /**
   * Tells readers of the end, once they have exactly the final output. They lack some where announcements were
   * lost. They have too much where a gateway and a worker died together, or where another gateway ended the run
   * before the tail was committed: then they forget the output and get the stored one, which is the same as the
   * message in the room's event.
   */
  #settle(): void {
    const final = this.#final;
    if (!final || this.#closed) return;
    const length = final.length ?? 0;
    if (this.next > length) this.#forget('worker_lost');
    if (this.next < length) {
      if (this.#healing) this.#healAgain = true;
      else if (this.#cancelHeal === undefined) this.#settleLater();
      return;
    }
    this.ended = final;
    this.close();
    this.#onEnd();
    this.#out.pushRun(this.#room, stateFrame(final));
  }

  /** At once the first time; slower while the store has not got it. */
  #settleLater(): void {
    this.#cancelHeal = this.#clock.after(this.#endReads++ === 0 ? 0 : HEAL_EVERY_MS, () => this.#heal());
  }

  #changed(): void {
    for (const watcher of this.watchers) watcher();
  }
}
