import type { ResetReason } from '../protocol/pushes.js';
import { isTerminal, type LiveRun } from '../protocol/runs.js';
import type { Announcement } from './bus.js';
import type { Clock } from './clock.js';
import type { RoomOutput } from './feeds.js';
import { type RoomKey, roomKey, tenantOf } from './keys.js';
import { type RestSizes, RunRest } from './run-rest.js';
import type { RunStore, StoredRun } from './run-store.js';
import { RunView } from './run-view.js';
import { type Chunk, chunkOf, newsOf, toRun } from './run-wire.js';
import { countLimit, type Logger, type Metrics } from './telemetry.js';

/** How long an ended run is remembered, so that a late repeat of its output does not bring it back, in ms. */
const ENDED_KEPT_MS = 60_000;
/** Announcements kept while a room or a run is read from the store; what is over heals by the check. */
const BACKLOG_MAX = 1000;
/** The same in characters, for each room that opens and for each run. */
const BACKLOG_MAX_BYTES = 4 * 1024 * 1024;

type Act = (view: RunView) => void;

/** What waits for a room or a run to be read from the store. */
class Backlog<T> {
  readonly #kept: T[] = [];
  #bytes = 0;

  /** @returns `false` where there is no room for it: it is dropped. */
  add(one: T, bytes: number): boolean {
    if (this.#kept.length >= BACKLOG_MAX || this.#bytes + bytes > BACKLOG_MAX_BYTES) return false;
    this.#kept.push(one);
    this.#bytes += bytes;
    return true;
  }

  take(): T[] {
    this.#bytes = 0;
    return this.#kept.splice(0);
  }
}

interface OpenRoom {
  readonly key: RoomKey;
  /** How often it was opened and not closed. */
  holders: number;
  ready: Promise<void>;
  opened: boolean;
  /** What came while the room was being opened. */
  readonly backlog: Backlog<() => void>;
  readonly views: Map<string, RunView>;
  /** Runs being read from the store, and what is to be done with them then. */
  readonly loading: Map<string, Backlog<Act>>;
  /** Of readers that are not live yet. */
  readonly rests: Set<RunRest>;
  /** Ids of ended runs and when they ended, by the local clock. */
  readonly ended: Map<string, number>;
}

interface RunViewsDeps {
  store: RunStore;
  log: Logger;
  rooms: RoomOutput;
  metrics: Metrics;
  clock: Clock;
  rest: RestSizes;
}

/** The live runs of the rooms that are open on this gateway. */
export class RunViews {
  readonly #rooms = new Map<RoomKey, OpenRoom>();
  readonly #store: RunStore;
  readonly #deps: RunViewsDeps;

  constructor(deps: RunViewsDeps) {
    this.#deps = deps;
    this.#store = deps.store;
  }

  /**
   * Loads the room's live runs. Counted: every call that resolved needs its {@link closeRoom}.
   * @throws TuttiError `log_unavailable`; the room is then not held.
   */
  async openRoom(key: RoomKey): Promise<void> {
    let room = this.#rooms.get(key);
    if (!room) {
      room = {
        key,
        holders: 0,
        ready: Promise.resolve(),
        opened: false,
        backlog: new Backlog(),
        views: new Map(),
        loading: new Map(),
        rests: new Set(),
        ended: new Map(),
      };
      this.#rooms.set(key, room);
      room.ready = this.#open(room);
    }
    room.holders++;
    try {
      await room.ready;
    } catch (error) {
      this.#release(room);
      throw error;
    }
  }

  closeRoom(key: RoomKey): void {
    const room = this.#rooms.get(key);
    if (room) this.#release(room);
  }

  /**
   * The store may have lost what was told of the room's runs, and may tell it another way under the same numbers. The
   * next {@link check} introduces what lives.
   */
  restartRoom(key: RoomKey): void {
    const room = this.#rooms.get(key);
    if (!room?.opened) return;
    for (const view of room.views.values()) view.close();
    room.views.clear();
    room.ended.clear();
  }

  /**
   * The live runs of an open room for who begins to read it now: with at most about `maxBytes` of output, and `rest`,
   * which brings what is missing. It is to be closed once the reader gets every push, or none any more.
   */
  join(key: RoomKey, maxBytes: number): { runs: LiveRun[]; rest: RunRest } {
    const room = this.#rooms.get(key);
    const rest: RunRest = new RunRest(
      () => room?.views.values() ?? [],
      this.#deps.rest,
      () => room?.rests.delete(rest),
    );
    room?.rests.add(rest);
    return { runs: rest.begin(maxBytes), rest };
  }

  /** The view of a live run in an open room. */
  find(key: RoomKey, run: string): RunView | undefined {
    return this.#rooms.get(key)?.views.get(run);
  }

  /** A `chunk` or `run` announcement of another gateway. */
  receive(key: RoomKey, message: Announcement): void {
    const room = this.#rooms.get(key);
    if (!room || message.frame === '') return;
    if (message.kind === 'chunk') {
      const chunk = chunkOf(message.key, message.frame);
      if (chunk) this.#with(room, chunk.run, chunk.frame.length, (view) => view.chunk(chunk));
    } else if (message.kind === 'run') {
      const news = newsOf(message.frame);
      this.#with(room, message.key, message.frame.length, (view) => {
        if (news.push === 'run.reset') view.reset(news.payload.attempt, news.payload.reason);
        else view.state(news.payload);
      });
    }
  }

  /** A chunk of a worker that pushes to this gateway. */
  chunk(key: RoomKey, chunk: Chunk): void {
    const room = this.#rooms.get(key);
    if (room) this.#with(room, chunk.run, chunk.frame.length, (view) => view.chunk(chunk));
  }

  /** A run as the store has just told, `reason` where it starts over. */
  changed(stored: StoredRun, reason: ResetReason = 'worker_lost'): void {
    const room = this.#rooms.get(roomKey(stored.tenant, stored.room));
    if (room) this.#stored(room, stored, reason);
  }

  /**
   * Heals what lost announcements left: runs nobody told of, states, ends, output. One query for all rooms.
   * @throws TuttiError `log_unavailable`.
   */
  async check(): Promise<void> {
    const rooms = [...this.#rooms.values()].filter(({ opened }) => opened);
    if (rooms.length === 0) return;
    const known = rooms.flatMap((room) => [...room.views.values()].map((view) => ({ room, view })));
    const live = new Set<string>();
    for (const stored of await this.#store.live(rooms.map((room) => room.key))) {
      live.add(stored.id);
      const room = this.#rooms.get(roomKey(stored.tenant, stored.room));
      if (room?.opened) this.#stored(room, stored, 'worker_lost');
    }
    for (const { room, view } of known) {
      if (live.has(view.id) || view.over || room.views.get(view.id) !== view) continue;
      const stored = await this.#store.get(tenantOf(room.key), view.id);
      if (stored) this.#stored(room, stored, 'worker_lost');
      else this.#forget(room, view); // the room was erased
    }
    const before = this.#deps.clock.monotonic() - ENDED_KEPT_MS;
    for (const { ended } of rooms) {
      for (const [run, at] of ended) if (at < before) ended.delete(run);
    }
  }

  close(): void {
    for (const room of this.#rooms.values()) for (const view of room.views.values()) view.close();
    this.#rooms.clear();
  }

  async #open(room: OpenRoom): Promise<void> {
    for (const stored of await this.#store.live([room.key])) {
      const view = this.#view(room, stored);
      if (stored.committed > 0) await view.load();
      else view.loaded();
      room.views.set(view.id, view);
    }
    room.opened = true;
    for (const act of room.backlog.take()) act();
  }

  #release(room: OpenRoom): void {
    if (--room.holders > 0) return;
    if (this.#rooms.get(room.key) === room) this.#rooms.delete(room.key);
    for (const view of room.views.values()) view.close();
  }

  /** Does it with the run's view, when there is one; an ended run has none. */
  #with(room: OpenRoom, run: string, bytes: number, act: Act): void {
    if (!room.opened) {
      this.#keep(room.backlog, () => this.#with(room, run, bytes, act), bytes);
      return;
    }
    if (room.ended.has(run)) return;
    const view = room.views.get(run);
    if (view) {
      act(view);
      return;
    }
    let waiting = room.loading.get(run);
    if (!waiting) {
      waiting = new Backlog();
      room.loading.set(run, waiting);
      void this.#load(room, run);
    }
    this.#keep(waiting, act, bytes);
  }

  /** What finds no room is healed by the check. */
  #keep<T>(backlog: Backlog<T>, one: T, bytes: number): void {
    if (!backlog.add(one, bytes)) countLimit(this.#deps.metrics, 'run_view_backlog');
  }

  /** A run that readers were not told of. What it did before is read from the store. */
  async #load(room: OpenRoom, run: string): Promise<void> {
    try {
      const stored = await this.#store.get(tenantOf(room.key), run);
      const acts = room.loading.get(run)?.take() ?? [];
      room.loading.delete(run);
      if (this.#rooms.get(room.key) !== room || !stored) return;
      this.#stored(room, stored, 'worker_lost');
      for (const act of acts) this.#with(room, run, 0, act);
    } catch (error) {
      room.loading.delete(run);
      this.#deps.log.warn({ err: error, run }, 'A run could not be read; the next check will.');
    }
  }

  #stored(room: OpenRoom, stored: StoredRun, reason: ResetReason): void {
    if (!room.opened) {
      this.#keep(room.backlog, () => this.#stored(room, stored, reason), 0);
      return;
    }
    if (room.ended.has(stored.id)) return;
    const run = toRun(stored);
    let view = room.views.get(stored.id);
    if (!view) {
      // Readers who never heard of a run that is over have its end in the room's log.
      if (isTerminal(stored.state)) {
        room.ended.set(stored.id, this.#deps.clock.monotonic());
        return;
      }
      view = this.#view(room, stored);
      room.views.set(view.id, view);
      view.introduce();
    } else {
      view.reset(stored.attempt, reason);
      view.state(run, run);
    }
    view.committedTo(stored.attempt, stored.committed);
  }

  #view(room: OpenRoom, stored: StoredRun): RunView {
    const view: RunView = new RunView(room.key, toRun(stored), this.#deps, () => {
      room.ended.set(view.id, this.#deps.clock.monotonic());
      if (room.views.get(view.id) === view) room.views.delete(view.id);
      for (const rest of room.rests) rest.ended(view);
    });
    return view;
  }

  #forget(room: OpenRoom, view: RunView): void {
    view.close();
    room.ended.set(view.id, this.#deps.clock.monotonic());
    room.views.delete(view.id);
  }
}
