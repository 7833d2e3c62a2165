import { randomUUID } from 'node:crypto';
import { TuttiError } from '../errors.js';
import { rightsOn } from '../protocol/capabilities.js';
import type { CommandPayload, CommandReply } from '../protocol/commands.js';
import { broadcastFrame, eventJson } from '../protocol/frames.js';
import { type JsonText, toJsonText } from '../protocol/primitives.js';
import type { LiveRun, Run } from '../protocol/runs.js';
import type { Announcement, Bus } from './bus.js';
import type { Clock } from './clock.js';
import type { Feeds } from './feeds.js';
import { type RoomKey, roomKey, roomOf } from './keys.js';
import { TokenBuckets } from './limits.js';
import type { EventLog, RoomSummary } from './log.js';
import type { MemoryGuard } from './memory.js';
import { actorOf, type Principal, requireRight, tenantOfPrincipal } from './principal.js';
import type { ReaderRest } from './replay.js';
import type { Metrics } from './telemetry.js';
import type { Viewer } from './viewer.js';

/** What rooms need of runs. */
export interface RoomRuns {
  /** Live runs with at most about `maxBytes` of their output so far; `rest` brings what is missing. */
  join(room: RoomKey, maxBytes: number): { runs: LiveRun[]; rest: ReaderRest };
  receive(room: RoomKey, message: Announcement): void;
  liveIn(room: RoomKey): Promise<Run[]>;
}

export interface RoomsDeps {
  log: EventLog;
  feeds: Feeds;
  runs: RoomRuns;
  bus: Bus;
  metrics: Metrics;
  clock: Clock;
  /** Publishes a second of one tenant on this gateway, over sockets and HTTP; a quarter as many at once. */
  limits: { roomsPerSession: number; publishesPerSecond: number };
  /** Asked before a reader is let into a room: a replay takes memory. */
  memory: Pick<MemoryGuard, 'check'>;
}

/** Least time a publisher of a tenant past its rate is told to wait, in ms. */
const RETRY_MIN_MS = 100;
const DEFAULT_HISTORY_LIMIT = 100;
const NO_RUNS = { runs: [], rest: undefined };

/** What principals do in rooms: join, publish, read, broadcast, erase. Every method authorises by itself. */
export class Rooms {
  readonly #deps: RoomsDeps;
  readonly #publishes: TokenBuckets;

  constructor(deps: RoomsDeps) {
    this.#deps = deps;
    const { publishesPerSecond } = deps.limits;
    this.#publishes = new TokenBuckets(publishesPerSecond, Math.max(1, publishesPerSecond / 4), deps.metrics);
  }

  /**
   * Joins a reader to a room from a position. `reply` is called once, before the first push of this join.
   * @throws TuttiError `forbidden`, `quota_exceeded` past the rooms of a session or of the tenant, `overloaded` past those
   * of the gateway or while it is short of memory, `log_unavailable`.
   */
  async join(
    principal: Principal,
    { room, from = 'latest' }: CommandPayload<'room.join'>,
    viewer: Viewer,
    reply: (reply: CommandReply<'room.join'>) => void,
  ): Promise<void> {
    const key = roomKey(requireRight(principal, room, 'join'), room);
    const rooms = this.#deps.feeds.roomsOf(viewer);
    if (!rooms.has(key) && rooms.size >= this.#deps.limits.roomsPerSession) {
      const message = `A session joins at most ${this.#deps.limits.roomsPerSession} rooms: leave one.`;
      throw new TuttiError('quota_exceeded', message, { limit: 'rooms_session' });
    }
    this.#deps.memory.check();
    const started = this.#deps.clock.monotonic();
    await this.#deps.feeds.join(key, viewer, from, (attached) => {
      this.#deps.metrics.observe('join', (this.#deps.clock.monotonic() - started) / 1000, {});
      const { runs, rest } = viewer.eventsOnly ? NO_RUNS : this.#deps.runs.join(key, viewer.room / 2);
      reply({ ...attached, runs, capabilities: rightsOn(principal.capabilities, room) });
      return rest;
    });
  }

  /** @throws TuttiError `not_joined`. */
  leave(principal: Principal, { room }: { room: string }, viewer: Viewer): void {
    if (!this.#deps.feeds.leave(roomKey(tenantOfPrincipal(principal), room), viewer)) {
      throw new TuttiError('not_joined', 'You have not joined this room.');
    }
  }

  /** The reader is gone, or may not read any more. */
  leaveAll(viewer: Viewer): void {
    this.#deps.feeds.leaveAll(viewer);
  }

  /** Names of the rooms a reader has joined. */
  joined(viewer: Viewer): string[] {
    return [...this.#deps.feeds.roomsOf(viewer)].map(roomOf);
  }

  /**
   * Stores an event (LOG1, LOG3) and sends it on its way to every reader (FEED1).
   * @throws TuttiError `forbidden`, `rate_limited` for a tenant past its rate, `conflict`, `overloaded`, `log_unavailable`.
   */
  async publish(
    principal: Principal,
    { room, type, data, mid = randomUUID() }: CommandPayload<'event.publish'>,
  ): Promise<CommandReply<'event.publish'>> {
    const tenant = requireRight(principal, room, 'publish');
    this.#requirePace(this.#publishes.take(tenant));
    const by = toJsonText(actorOf(principal));
    const { epoch, seq, at, duplicate } = await this.#deps.log.append({ tenant, room, mid, type, data, by });
    if (!duplicate) this.#deps.feeds.committed(roomKey(tenant, room), { room, epoch, seq, mid, type, data, by, at });
    return { position: { epoch, seq }, mid, at, duplicate };
  }

  /**
   * Old events as JSON texts. Without `order` they come oldest first after a position, else newest first.
   * A room nobody has used yet begins here, empty.
   * @throws TuttiError `forbidden`, `log_unavailable`.
   */
  async history(
    principal: Principal,
    { room, after, before, limit = DEFAULT_HISTORY_LIMIT, order }: CommandPayload<'event.history'>,
  ): Promise<{ events: JsonText[]; epoch: string; head: number; floor: number }> {
    const tenant = requireRight(principal, room, 'join');
    const page = await this.#deps.log.read(tenant, room, {
      limit,
      order: order ?? (after === undefined ? 'desc' : 'asc'),
      ...(after === undefined ? {} : { after }),
      ...(before === undefined ? {} : { before }),
    });
    if (!page) return { events: [], ...(await this.#deps.log.open(tenant, room)) };
    return { events: page.events.map(eventJson), epoch: page.epoch, head: page.head, floor: page.floor };
  }

  /** Sends to whoever reads the room now, the sender left out. Never stored; may be lost. */
  broadcast(principal: Principal, { room, type, data }: CommandPayload<'broadcast.send'>, sender?: Viewer): void {
    const key = roomKey(requireRight(principal, room, 'broadcast'), room);
    const frame = broadcastFrame(room, type, data, actorOf(principal));
    this.#deps.feeds.push(key, frame, sender);
    this.#deps.bus.announce(key, { kind: 'broadcast', key: '', frame });
  }

  /** Rooms of the tenant by name, for whoever may join all of them. `next` is the cursor of the next page, if any. */
  async list(
    principal: Principal,
    cursor: string | undefined,
    limit: number,
  ): Promise<{ rooms: RoomSummary[]; next?: string }> {
    const tenant = tenantOfPrincipal(principal);
    if (!principal.capabilities['*']?.includes('join')) {
      throw new TuttiError('forbidden', 'Listing rooms needs "join" on "*".');
    }
    const rooms = await this.#deps.log.list(tenant, cursor, limit + 1);
    const last = rooms.length > limit ? rooms[limit - 1]?.room : undefined;
    return { rooms: rooms.slice(0, limit), ...(last === undefined ? {} : { next: last }) };
  }

  /** @throws TuttiError `forbidden`, `not_found`. */
  async get(principal: Principal, room: string): Promise<RoomSummary & { runs: Run[] }> {
    const tenant = requireRight(principal, room, 'join');
    const [summary, runs] = await Promise.all([
      this.#deps.log.summary(tenant, room),
      this.#deps.runs.liveIn(roomKey(tenant, room)),
    ]);
    if (!summary) throw noSuchRoom();
    return { ...summary, runs };
  }

  /** Erases the room with all its events and runs; readers resync to the empty room that takes its place. */
  async erase(principal: Principal, room: string): Promise<void> {
    const tenant = requireRight(principal, room, 'moderate');
    if (!(await this.#deps.log.erase(tenant, room))) throw noSuchRoom();
    this.#deps.bus.announce(roomKey(tenant, room), { kind: 'hint', key: 'erased', frame: '' });
    await this.#deps.feeds.check();
  }

  /** What another gateway announced about a room that is open here. */
  receive(key: RoomKey, message: Announcement): void {
    if (message.kind === 'event') this.#deps.feeds.announced(key, message);
    else if (message.kind !== 'broadcast') this.#receiveHint(key, message);
    else if (message.frame !== '') this.#deps.feeds.push(key, message.frame);
  }

  /**
   * Foretells whether a tenant may publish one event more after `ahead` others that are on their way here; counts nothing.
   * @throws TuttiError `rate_limited` where it may not.
   */
  expectPace(tenant: string, ahead: number): void {
    this.#requirePace(this.#publishes.expect(tenant, ahead));
  }

  #requirePace(waitMs: number): void {
    if (waitMs === 0) return;
    this.#deps.metrics.add('rate_limited', { scope: 'publishes' });
    const retryAfterMs = Math.max(RETRY_MIN_MS, waitMs);
    throw new TuttiError('rate_limited', 'Your tenant publishes faster than it may here.', { retryAfterMs });
  }

  #receiveHint(key: RoomKey, message: Announcement): void {
    if (message.kind === 'hint' && message.key === 'erased') void this.#deps.feeds.check();
    else this.#deps.runs.receive(key, message);
  }
}

const noSuchRoom = () => new TuttiError('not_found', 'There is no such room.');
