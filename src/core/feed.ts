import { TuttiError } from '../errors.js';
import type { JoinFrom, ResyncReason } from '../protocol/commands.js';
import { encodePush, eventFrame, type Frame } from '../protocol/frames.js';
import { MAX_HISTORY_LIMIT, type Position } from '../protocol/primitives.js';
import type { Clock } from './clock.js';
import { type RoomKey, roomOf, tenantOf } from './keys.js';
import type { EventLog, RoomHead } from './log.js';
import { LogPages } from './log-pages.js';
import { ReadRetries } from './read-retries.js';
import { type ReaderRest, Replay } from './replay.js';
import { Ring } from './ring.js';
import { countLimit, type Logger, type Metrics } from './telemetry.js';
import { inTurn, type Outlet, readyFor, type Viewer } from './viewer.js';

export interface FeedLimits {
  /** Recent events kept, and events kept that wait for an earlier one, in characters each. */
  ringBytes: number;
  gapRepairMs: number;
  /** Pushes that are no events, kept for one reader while its replay runs, in characters. */
  replayBufferBytes: number;
}

export interface FeedDeps {
  log: EventLog;
  outlet: Outlet;
  clock: Clock;
  metrics: Metrics;
  logger: Logger;
  limits: FeedLimits;
  /** Readers were just told to start over because the log is another one: what else they know of the room is void too. */
  restarted?: (room: RoomKey) => void;
}

/** Where a reader was put. `position` is what it has; the first event it gets is `position.seq + 1`. */
export interface Attached {
  position: Position;
  resumed: boolean;
  resync?: { reason: ResyncReason };
  head: number;
}

/** Characters sent to one reader before its buffer is asked again. */
const REPLAY_PAGE_BYTES = 128 * 1024;
const REPAIR_RETRY_MS = 250;

/**
 * The events of one room on one gateway, in order. Live delivery, resume and repair are one path: whatever
 * arrives, readers get `head + 1` next (FEED1). The bus may lose, reorder or repeat; the log has the truth.
 */
export class Feed {
  readonly key: RoomKey;
  readonly #deps: FeedDeps;
  readonly #ring: Ring;
  readonly #live = new Set<Viewer>();
  readonly #replays = new Map<Viewer, Replay>();
  /** Events that came before an earlier one; what finds no room here is read from the log. */
  readonly #waiting = new Map<number, Frame>();
  #waitingBytes = 0;
  readonly #pages: LogPages;
  #epoch: string;
  #head: number;
  #floor: number;
  /** The greatest seq known to exist. */
  #known: number;
  #cancelRepair: (() => void) | undefined;
  #repairing: Promise<void> | undefined;
  #ringFilled = false;
  #closed = false;

  constructor(key: RoomKey, start: RoomHead, deps: FeedDeps) {
    this.key = key;
    this.#deps = deps;
    this.#epoch = start.epoch;
    this.#head = start.head;
    this.#known = start.head;
    this.#floor = start.floor;
    this.#ring = new Ring(deps.limits.ringBytes);
    this.#pages = new LogPages(key, deps);
    this.#ring.reset(start.head + 1);
  }

  get epoch(): string {
    return this.#epoch;
  }

  get head(): number {
    return this.#head;
  }

  get position(): Position {
    return { epoch: this.#epoch, seq: this.#head };
  }

  /** Whether the log is known to hold what has not arrived here. */
  get behind(): boolean {
    return this.#head < this.#known;
  }

  get ringBytes(): number {
    return this.#ring.bytes;
  }

  get viewers(): number {
    return this.#live.size + this.#replays.size;
  }

  /** An event from the log, the bus or this gateway's own writer, in any order and any number of times. */
  receive(epoch: string, seq: number, frame: Frame): void {
    if (epoch !== this.#epoch || seq <= this.#head) return;
    if (seq > this.#head + 1) {
      this.#keepWaiting(seq, frame);
      this.expect(seq, 'gap');
      return;
    }
    this.#deliver(frame);
    for (let next = this.#waiting.get(this.#head + 1); next; next = this.#waiting.get(this.#head + 1)) {
      this.#waiting.delete(this.#head + 1);
      this.#waitingBytes -= next.length;
      this.#deliver(next);
    }
  }

  #keepWaiting(seq: number, frame: Frame): void {
    if (this.#waiting.has(seq)) return;
    if (this.#waitingBytes + frame.length > this.#deps.limits.ringBytes) {
      countLimit(this.#deps.metrics, 'feed_waiting');
      return;
    }
    this.#waiting.set(seq, frame);
    this.#waitingBytes += frame.length;
  }

  /** The room is known to hold `seq`; if it has not arrived soon, it is read from the log. */
  expect(seq: number, cause: 'gap' | 'head_check'): void {
    if (seq <= this.#head || this.#closed) return;
    this.#known = Math.max(this.#known, seq);
    if (this.#cancelRepair || this.#repairing) return;
    this.#scheduleRepair(this.#deps.limits.gapRepairMs, cause);
  }

  /** Sends a broadcast to every reader; those in replay get it after their replay. */
  push(frame: Frame, except?: Viewer): void {
    this.#deps.outlet.publish(this.key, frame, except);
    for (const [viewer, replay] of this.#replays) {
      if (viewer === except || viewer.eventsOnly) continue;
      if (!replay.holdBroadcast(frame)) this.#cut(viewer);
    }
  }

  /** Sends what happened to a run to every reader; those in replay get it after their replay, or with their rest. */
  pushRun(frame: Frame): void {
    this.#deps.outlet.publish(this.key, frame);
    for (const [viewer, replay] of this.#replays) {
      if (!replay.holdRun(frame)) this.#cut(viewer);
    }
  }

  /**
   * Attaches a reader. `attached` is called once, before anything is sent, and says what the reader lacks of runs; then
   * come the events after its position and the runs' output, replay and live without a seam. A reader that attaches
   * again starts over from the new position.
   */
  attach(viewer: Viewer, from: JoinFrom, attached: (result: Attached) => ReaderRest | undefined): void {
    this.detach(viewer);
    const start = this.#startOf(from);
    if (start.resync) this.#deps.metrics.add('resyncs', { reason: start.resync.reason });
    const replay = new Replay(start.position.seq, attached(start), this.#deps.limits.replayBufferBytes);
    this.#replays.set(viewer, replay);
    if (viewer.full || !this.#advance(viewer, replay)) void this.#replay(viewer, replay);
  }

  detach(viewer: Viewer): boolean {
    if (this.#live.delete(viewer)) {
      viewer.unfollow(this.key);
      return true;
    }
    this.#replays.get(viewer)?.rest?.close();
    return this.#replays.delete(viewer);
  }

  has(viewer: Viewer): boolean {
    return this.#live.has(viewer) || this.#replays.has(viewer);
  }

  /**
   * Compares with the room's head as the log had it. `seen` is where this feed stood before the log was asked: a
   * log that is behind it has lost events that readers have. An answer that the feed has outlived says nothing.
   */
  compare(log: RoomHead, seen: Position): void {
    if (seen.epoch !== this.#epoch) return;
    if (log.epoch !== this.#epoch) this.#rebase(log, 'epoch_changed');
    else if (log.head < seen.seq) this.#rebase(log, 'position_ahead');
    else {
      this.#floor = Math.max(this.#floor, log.floor);
      if (this.#head < this.#floor) this.#rebase(log, 'position_too_old');
      else this.expect(log.head, 'head_check');
    }
  }

  /** Reads what is known to exist and has not arrived, now. Resolves also when the log cannot be read. */
  async catchUp(): Promise<void> {
    this.#cancelRepair?.();
    this.#cancelRepair = undefined;
    this.#startRepair('head_check');
    await this.#repairing;
  }

  /** Drops the ring to free memory; readers that need old events are then served from the log. */
  forget(): void {
    this.#ring.reset(this.#head + 1);
    this.#ringFilled = true;
  }

  close(): void {
    this.#closed = true;
    this.#cancelRepair?.();
    this.#forgetWaiting();
    this.#ring.reset(this.#head + 1);
    for (const viewer of [...this.#live, ...this.#replays.keys()]) this.detach(viewer);
  }

  #forgetWaiting(): void {
    this.#waiting.clear();
    this.#waitingBytes = 0;
  }

  #deliver(frame: Frame): void {
    this.#head += 1;
    this.#ring.push(frame);
    this.#deps.outlet.publish(this.key, frame);
  }

  #cut(viewer: Viewer): void {
    this.detach(viewer);
    this.#deps.metrics.add('slow_closes', {});
    viewer.close('slow_consumer', 'You read more slowly than the room talks. Come back with your position.');
  }

  #startOf(from: JoinFrom): Attached {
    const latest = this.position;
    if (from === 'latest') return { position: latest, resumed: false, head: this.#head };
    const oldest: Position = { epoch: this.#epoch, seq: this.#floor };
    if (from === 'start') return { position: oldest, resumed: false, head: this.#head };
    const reason = this.#refusal(from);
    return reason
      ? { position: latest, resumed: false, resync: { reason }, head: this.#head }
      : { position: from, resumed: true, head: this.#head };
  }

  #refusal(from: Position): ResyncReason | undefined {
    if (from.epoch !== this.#epoch) return 'epoch_changed';
    if (from.seq < this.#floor) return 'position_too_old';
    if (from.seq > this.#head) return 'position_ahead';
    return undefined;
  }

  /** Brings a reader on by a page, from the ring and of its rest. @returns whether nothing is left to do. */
  #advance(viewer: Viewer, replay: Replay): boolean {
    const { rest } = replay;
    let left = Math.min(REPLAY_PAGE_BYTES, viewer.room);
    const send = (frames: readonly Frame[]) => {
      viewer.send(frames);
      for (const frame of frames) left -= frame.length;
    };
    while (replay.cursor < this.#head && left > 0) {
      const frames = this.#ring.after(replay.cursor, left);
      if (!frames || frames.length === 0) return false;
      send(frames);
      replay.cursor += frames.length;
    }
    if (replay.cursor < this.#head) return false;
    while (rest?.behind) {
      if (left <= 0) return false;
      const frames = rest.page(left);
      if (frames.length === 0) break;
      send(frames);
    }
    const held = replay.take();
    if (held.length > 0) viewer.send(held);
    rest?.close();
    this.#replays.delete(viewer);
    this.#live.add(viewer);
    viewer.follow(this.key);
    return true;
  }

  async #replay(viewer: Viewer, replay: Replay): Promise<void> {
    const current = () => this.#replays.get(viewer) === replay && !this.#closed;
    const retries = new ReadRetries(this.#deps.clock);
    while (current()) {
      try {
        await inTurn(viewer, () => this.#step(viewer, replay, current));
        retries.reset();
      } catch (cause) {
        // It keeps its connection, with its other rooms and what is live in them.
        const unread = cause instanceof TuttiError;
        if (!current() || (unread && (await retries.next()))) continue;
        if (!current()) return;
        this.detach(viewer);
        if (!unread) this.#deps.logger.error({ room: this.key, err: cause }, 'A replay failed');
        viewer.close('overloaded', 'The log cannot be read at the moment. Come back with your position.');
      }
    }
  }

  /** Brings a reader on by a page as soon as there is room for it. */
  async #step(viewer: Viewer, replay: Replay, current: () => boolean): Promise<void> {
    if (!current()) return;
    const here = await readyFor(viewer);
    if (!current()) return;
    if (!here) return void this.detach(viewer);
    if (this.#advance(viewer, replay)) return;
    if (this.#ring.first > replay.cursor + 1) await this.#replayFromLog(viewer, replay, current);
  }

  async #replayFromLog(viewer: Viewer, replay: Replay, current: () => boolean): Promise<void> {
    if (!this.#ringFilled) return this.#fillRing();
    const { epoch } = this;
    const { cursor } = replay;
    const page = await this.#pages.with(cursor + 1);
    // A rebase meanwhile has put the reader at the head: it lacks nothing.
    if (!current() || epoch !== this.#epoch || replay.cursor !== cursor || cursor >= this.#head) return;
    if (page && page.head.epoch === epoch && page.head.floor <= cursor) {
      if (page.head.head <= cursor) return;
      const from = cursor - page.after;
      // The log may be ahead of this feed: what is past the head comes live.
      const fresh = upTo(viewer.room, page.frames.slice(from, from + this.#head - cursor));
      viewer.send(fresh);
      replay.cursor += fresh.length;
      if (fresh.length > 0) return;
    }
    this.#resyncOne(viewer, replay);
  }

  /** The log does not have what this reader needs next: say so, then go on from the head. */
  #resyncOne(viewer: Viewer, replay: Replay): void {
    const reason: ResyncReason = 'position_too_old';
    replay.cursor = this.#head;
    this.#deps.metrics.add('resyncs', { reason });
    viewer.send([this.#resyncFrame(reason)]);
  }

  /** The newest events before the ring, read once per opening: ten thousand readers that return share them. */
  async #fillRing(): Promise<void> {
    const { first } = this.#ring;
    const { epoch } = this;
    const page = await this.#pages.before(first);
    if (this.#ringFilled || this.#closed) return;
    this.#ringFilled = true;
    const fits = page?.head.epoch === epoch && epoch === this.#epoch && first === this.#ring.first;
    // A log that lost events meanwhile ends before them.
    if (fits && page.after + page.frames.length + 1 === first) this.#ring.prepend(page.frames);
  }

  #scheduleRepair(ms: number, cause: 'gap' | 'head_check'): void {
    this.#cancelRepair = this.#deps.clock.after(ms, () => {
      this.#cancelRepair = undefined;
      this.#startRepair(cause);
    });
  }

  #startRepair(cause: 'gap' | 'head_check'): void {
    if (this.#repairing || !this.behind || this.#closed) return;
    this.#repairing = this.#repair(cause);
  }

  async #repair(cause: 'gap' | 'head_check'): Promise<void> {
    this.#deps.metrics.add('repairs', { cause });
    let failed = false;
    try {
      while (this.behind && !this.#closed) {
        const seen = this.position;
        const page = await this.#deps.log.read(tenantOf(this.key), roomOf(this.key), {
          after: seen.seq,
          limit: MAX_HISTORY_LIMIT,
          order: 'asc',
        });
        if (this.#closed) return;
        if (!page || page.epoch !== this.#epoch || page.floor > this.#head) {
          if (page) this.compare(page, seen);
          else this.#known = this.#head;
          break;
        }
        const before = this.#head;
        for (const event of page.events) this.receive(event.epoch, event.seq, eventFrame(event));
        this.#deps.metrics.add('repaired_events', {}, this.#head - before);
        if (page.head <= this.#head) this.#known = Math.min(this.#known, this.#head);
        // Nothing that is due: asking again at once would keep the database busy for nothing.
        if (this.#head === before) break;
      }
    } catch (err) {
      failed = true;
      this.#deps.logger.warn({ room: this.key, err }, 'A repair could not read the log; it is tried again');
    } finally {
      this.#repairing = undefined;
      if (this.behind && !this.#closed)
        this.#scheduleRepair(failed ? REPAIR_RETRY_MS : this.#deps.limits.gapRepairMs, cause);
    }
  }

  /** The log is another one than readers followed: everybody starts over from its head. */
  #rebase(log: RoomHead, reason: ResyncReason): void {
    this.#cancelRepair?.();
    this.#cancelRepair = undefined;
    this.#epoch = log.epoch;
    this.#head = log.head;
    this.#known = log.head;
    this.#floor = log.floor;
    this.#forgetWaiting();
    this.#ring.reset(log.head + 1);
    this.#ringFilled = false;
    this.#deps.metrics.add('resyncs', { reason }, this.viewers);
    this.#deps.logger.warn({ room: this.key, reason }, 'The log changed under its readers; all of them resync');
    const frame = this.#resyncFrame(reason);
    this.#deps.outlet.publish(this.key, frame);
    for (const [viewer, replay] of this.#replays) {
      // At once and not after the replay, which goes on in the new log.
      replay.fallBehind();
      viewer.send([...replay.take(), frame]);
      replay.cursor = log.head;
    }
    if (reason !== 'position_too_old') this.#deps.restarted?.(this.key);
  }

  #resyncFrame(reason: ResyncReason): Frame {
    return encodePush('room.resync', { room: roomOf(this.key), reason, position: this.position });
  }
}

/** The first of the frames that are about `maxBytes` together, at least one. */
function upTo(maxBytes: number, frames: Frame[]): Frame[] {
  let bytes = 0;
  const end = frames.findIndex((frame) => {
    bytes += frame.length;
    return bytes >= maxBytes;
  });
  return end < 0 ? frames : frames.slice(0, end + 1);
}
