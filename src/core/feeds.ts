import { TuttiError } from '../errors.js';
import type { JoinFrom } from '../protocol/commands.js';
import { type EventRecord, eventFrame, type Frame } from '../protocol/frames.js';
import type { Announcement, Bus } from './bus.js';
import { type Attached, Feed, type FeedDeps, type FeedLimits } from './feed.js';
import { type RoomKey, roomOf, tenantOf } from './keys.js';
import type { RoomHead } from './log.js';
import type { ReaderRest } from './replay.js';
import { countLimit } from './telemetry.js';
import { readyFor, type Viewer } from './viewer.js';

export interface FeedsLimits extends FeedLimits {
  ringBytesTotal: number;
  headCheckMs: number;
  lingerMs: number;
  /** Rooms open at a time, of all tenants and of one. */
  roomsOpen: { total: number; perTenant: number };
}

/** What runs send into a room of this gateway. */
export interface RoomOutput {
  /** What happened to a run, to every reader of the room on this gateway; to those in replay with or after it. */
  pushRun(room: RoomKey, frame: Frame): void;
  /** An event that is committed: to this gateway's own readers, then to the bus. */
  committed(room: RoomKey, event: EventRecord): void;
}

/** What else lives and dies with an open room. */
export interface RoomCompanion {
  /** Called once the bus is subscribed; readers are attached when it resolved. */
  openRoom(room: RoomKey): Promise<void>;
  /** Once for every call of {@link openRoom} that resolved. */
  closeRoom(room: RoomKey): void;
  /** The room's log became another one, and readers forgot all they knew. What lives is told again by a check. */
  restartRoom(room: RoomKey): void;
  /** Heals what announcements lost, in every room that it has open, also for others than this. */
  check(): Promise<void>;
}

export interface FeedsDeps extends Omit<FeedDeps, 'limits' | 'restarted'> {
  bus: Bus;
  limits: FeedsLimits;
}

/** A room with a reader, or one that had a reader a moment ago. */
interface OpenRoom {
  opening: Promise<Feed>;
  feed: Feed | undefined;
  /** Events that came while the room opened. */
  early: { epoch: string; seq: number; frame: Frame }[];
  earlyBytes: number;
  /** Joins under way: the room must not close under them. */
  joining: number;
  cancelLinger: (() => void) | undefined;
}

const FULL_RETRY_MS = 1000;

/** All open rooms of this gateway: opens and closes feeds, checks their heads, keeps their rings within bounds. */
export class Feeds implements RoomOutput {
  readonly #deps: FeedsDeps;
  readonly #rooms = new Map<RoomKey, OpenRoom>();
  /** Open rooms of each tenant. */
  readonly #ofTenant = new Map<string, number>();
  readonly #joined = new Map<Viewer, Set<RoomKey>>();
  readonly #refreshes = new Map<RoomKey, Promise<void>>();
  #companion: RoomCompanion | undefined;
  #cancelCheck: (() => void) | undefined;
  #checking: Promise<void> | undefined;
  #closed = false;

  constructor(deps: FeedsDeps) {
    this.#deps = deps;
    deps.metrics.gauge('rooms_open', () => this.#rooms.size);
    deps.metrics.gauge('room_joins', () => this.#sum((feed) => feed.viewers));
    deps.metrics.gauge('ring_bytes', () => this.#sum((feed) => feed.ringBytes));
  }

  /** Begins the head checks (FEED2). */
  start(companion: RoomCompanion): void {
    this.#companion = companion;
    this.#deps.bus.onReconnect(() => void this.check());
    this.#scheduleCheck();
  }

  /** An event as another gateway announced it, or as this one committed it. */
  receive(key: RoomKey, epoch: string, seq: number, frame: Frame): void {
    const room = this.#rooms.get(key);
    if (!room) return;
    if (!room.feed) {
      this.#keepEarly(room, { epoch, seq, frame });
      return;
    }
    if (epoch !== room.feed.epoch) void this.check();
    room.feed.receive(epoch, seq, frame);
  }

  committed(key: RoomKey, event: EventRecord): void {
    const frame = eventFrame(event);
    this.receive(key, event.epoch, event.seq, frame);
    this.#deps.bus.announce(key, { kind: 'event', key: `${event.epoch}:${event.seq}:${event.at}`, frame });
  }

  /** An announcement of kind `event`. */
  announced(key: RoomKey, message: Announcement): void {
    const [epoch, seq, at] = message.key.split(':');
    if (!epoch || !message.frame) return;
    this.#deps.metrics.observe('bus_lag', Math.max(0, this.#deps.clock.now() - Number(at)) / 1000, {});
    this.receive(key, epoch, Number(seq), message.frame);
  }

  pushRun(key: RoomKey, frame: Frame): void {
    this.#rooms.get(key)?.feed?.pushRun(frame);
  }

  /** Sends what is not kept to every reader; those in replay get it after their replay. */
  push(key: RoomKey, frame: Frame, except?: Viewer): void {
    this.#rooms.get(key)?.feed?.push(frame, except);
  }

  /**
   * Attaches a reader from a position, once it has taken what waits for it; see {@link Feed.attach}.
   * @throws TuttiError `log_unavailable` when the room cannot be opened, `overloaded` and `quota_exceeded` where too many
   * are open, `not_joined` for a reader that left meanwhile, `draining`. A reader that had joined before then goes on as it was.
   */
  async join(
    key: RoomKey,
    viewer: Viewer,
    from: JoinFrom,
    attached: (result: Attached) => ReaderRest | undefined,
  ): Promise<void> {
    const room = this.#open(key);
    const joined = this.#joined.get(viewer) ?? new Set();
    this.#joined.set(viewer, joined);
    joined.add(key);
    room.joining += 1;
    try {
      const feed = await room.opening;
      if (viewer.full && !(await readyFor(viewer)))
        throw new TuttiError('not_joined', 'You left while you were joining.');
      const ahead = () => typeof from === 'object' && from.epoch === feed.epoch && from.seq > feed.head;
      if (ahead()) await this.#refresh(key, feed);
      if (ahead()) await this.#refresh(key, feed);
      // What the reader has may well be in the log; it must not start over because we could not look.
      if (ahead() && feed.behind) throw new TuttiError('log_unavailable', 'The log cannot be read at the moment.');
      if (this.#closed) throw new TuttiError('draining', 'This gateway is leaving.');
      if (!this.#joined.get(viewer)?.has(key)) throw new TuttiError('not_joined', 'You left while you were joining.');
      feed.attach(viewer, from, attached);
    } catch (cause) {
      // A reader that had joined before goes on from where it was; it must stay known, or nothing could end it.
      if (!room.feed?.has(viewer)) this.#forget(viewer, key);
      throw cause;
    } finally {
      room.joining -= 1;
      this.#lingerIfIdle(key, room);
    }
  }

  /** @returns whether the reader had joined. */
  leave(key: RoomKey, viewer: Viewer): boolean {
    const joined = this.#forget(viewer, key);
    const room = this.#rooms.get(key);
    room?.feed?.detach(viewer);
    if (room) this.#lingerIfIdle(key, room);
    return joined;
  }

  /** The reader is gone. */
  leaveAll(viewer: Viewer): void {
    for (const key of this.#joined.get(viewer) ?? []) this.leave(key, viewer);
  }

  roomsOf(viewer: Viewer): ReadonlySet<RoomKey> {
    return this.#joined.get(viewer) ?? new Set();
  }

  /** Reads the heads of all open rooms in one query and repairs those that are behind; one check at a time. */
  check(): Promise<void> {
    this.#checking ??= this.#checkAll().finally(() => {
      this.#checking = undefined;
    });
    return this.#checking;
  }

  close(): void {
    this.#closed = true;
    this.#cancelCheck?.();
    for (const key of [...this.#rooms.keys()]) this.#close(key);
  }

  #open(key: RoomKey): OpenRoom {
    const known = this.#rooms.get(key);
    if (known) {
      known.cancelLinger?.();
      known.cancelLinger = undefined;
      return known;
    }
    this.#requirePlace(tenantOf(key));
    const room: OpenRoom = {
      opening: Promise.resolve() as never,
      feed: undefined,
      early: [],
      earlyBytes: 0,
      joining: 0,
      cancelLinger: undefined,
    };
    this.#rooms.set(key, room);
    this.#ofTenant.set(tenantOf(key), (this.#ofTenant.get(tenantOf(key)) ?? 0) + 1);
    room.opening = this.#openFeed(key, room);
    room.opening.catch(() => {
      if (this.#rooms.get(key) === room) this.#close(key);
    });
    return room;
  }

  #requirePlace(tenant: string): void {
    const { roomsOpen } = this.#deps.limits;
    if (this.#rooms.size >= roomsOpen.total) {
      const extra = { retryAfterMs: FULL_RETRY_MS, limit: 'rooms_open' } as const;
      throw new TuttiError('overloaded', 'Too many rooms are open at this gateway; try another, or later.', extra);
    }
    if ((this.#ofTenant.get(tenant) ?? 0) >= roomsOpen.perTenant) {
      const message = `Your tenant has ${roomsOpen.perTenant} rooms open here, which is its limit.`;
      throw new TuttiError('quota_exceeded', message, { limit: 'rooms_open_tenant' });
    }
  }

  /** What finds no room is read from the log when the feed stands. */
  #keepEarly(room: OpenRoom, event: OpenRoom['early'][number]): void {
    if (room.earlyBytes + event.frame.length > this.#deps.limits.ringBytes) {
      countLimit(this.#deps.metrics, 'feed_waiting');
      return;
    }
    room.early.push(event);
    room.earlyBytes += event.frame.length;
  }

  /** Subscribes, then reads: whatever is committed after the read is announced to us, or found by a check. */
  async #openFeed(key: RoomKey, room: OpenRoom): Promise<Feed> {
    await this.#deps.bus.subscribe(key);
    this.#deps.metrics.add('log_queries', { purpose: 'open' });
    const companion = this.#companion?.openRoom(key);
    let head: RoomHead;
    try {
      [head] = await Promise.all([this.#deps.log.open(tenantOf(key), roomOf(key)), companion]);
    } catch (cause) {
      // What opened all the same, or will yet, is not held.
      companion?.then(
        () => this.#companion?.closeRoom(key),
        () => undefined,
      );
      throw cause;
    }
    const feed = new Feed(key, head, { ...this.#deps, restarted: (room) => this.#companion?.restartRoom(room) });
    room.feed = feed;
    for (const event of room.early) feed.receive(event.epoch, event.seq, event.frame);
    room.early = [];
    room.earlyBytes = 0;
    return feed;
  }

  #lingerIfIdle(key: RoomKey, room: OpenRoom): void {
    if (room.joining > 0 || (room.feed?.viewers ?? 0) > 0 || room.cancelLinger || this.#rooms.get(key) !== room) return;
    room.cancelLinger = this.#deps.clock.after(this.#deps.limits.lingerMs, () => this.#close(key));
  }

  #close(key: RoomKey): void {
    const room = this.#rooms.get(key);
    if (!room) return;
    this.#rooms.delete(key);
    const left = (this.#ofTenant.get(tenantOf(key)) ?? 0) - 1;
    if (left > 0) this.#ofTenant.set(tenantOf(key), left);
    else this.#ofTenant.delete(tenantOf(key));
    room.cancelLinger?.();
    if (room.feed) {
      room.feed.close();
      this.#companion?.closeRoom(key);
    }
    this.#deps.bus.unsubscribe(key);
  }

  #forget(viewer: Viewer, key: RoomKey): boolean {
    const joined = this.#joined.get(viewer);
    const was = joined?.delete(key) ?? false;
    if (joined?.size === 0) this.#joined.delete(viewer);
    return was;
  }

  #scheduleCheck(): void {
    this.#cancelCheck = this.#deps.clock.after(this.#deps.limits.headCheckMs, () => {
      void this.check().finally(() => {
        if (!this.#closed) this.#scheduleCheck();
      });
    });
  }

  async #checkAll(): Promise<void> {
    this.#boundRings();
    const seen = new Map<RoomKey, Feed>();
    for (const [key, room] of this.#rooms) if (room.feed) seen.set(key, room.feed);
    const keys = [...seen.keys()];
    const stood = new Map([...seen].map(([key, feed]) => [key, feed.position]));
    try {
      const found = keys.length > 0 ? await this.#deps.log.heads(keys) : new Map<RoomKey, RoomHead>();
      // Runs first: readers that are told to start over must not be given runs that went with the room.
      const [checked] = await Promise.allSettled([this.#companion?.check()]);
      for (const [key, feed] of seen) {
        if (this.#rooms.get(key)?.feed !== feed) continue;
        const head = found.get(key) ?? (await this.#reopen(key));
        const before = stood.get(key);
        if (head && before) feed.compare(head, before);
      }
      if (checked.status === 'rejected') throw checked.reason;
    } catch (err) {
      this.#deps.logger.warn({ err, rooms: keys.length }, 'A head check could not read the log; it is tried again');
    }
  }

  /** An open room was erased: the next room of that name begins now. */
  #reopen(key: RoomKey): Promise<RoomHead> {
    return this.#deps.log.open(tenantOf(key), roomOf(key));
  }

  /**
   * A reader is further than this feed: ask the log who is right. Readers that ask meanwhile share the answer; it may
   * have been read too early for them, so they ask twice.
   */
  #refresh(key: RoomKey, feed: Feed): Promise<void> {
    let refresh = this.#refreshes.get(key);
    if (!refresh) {
      refresh = this.#readHead(key, feed).finally(() => this.#refreshes.delete(key));
      this.#refreshes.set(key, refresh);
    }
    return refresh;
  }

  async #readHead(key: RoomKey, feed: Feed): Promise<void> {
    const seen = feed.position;
    this.#deps.metrics.add('log_queries', { purpose: 'head' });
    const head = (await this.#deps.log.heads([key])).get(key);
    if (!head) return;
    feed.compare(head, seen);
    await feed.catchUp();
  }

  /** Drops rings, those of the rooms opened first, until all of them together are within bounds. */
  #boundRings(): void {
    let bytes = this.#sum((feed) => feed.ringBytes);
    for (const { feed } of this.#rooms.values()) {
      if (bytes <= this.#deps.limits.ringBytesTotal) return;
      if (!feed) continue;
      if (feed.ringBytes === 0) continue;
      countLimit(this.#deps.metrics, 'ring_total');
      bytes -= feed.ringBytes;
      feed.forget();
    }
  }

  #sum(of: (feed: Feed) => number): number {
    let total = 0;
    for (const { feed } of this.#rooms.values()) if (feed) total += of(feed);
    return total;
  }
}
