import { Feeds, type FeedsLimits } from '../../src/core/feeds.js';
import { type RoomKey, roomOf } from '../../src/core/keys.js';
import type { Principal } from '../../src/core/principal.js';
import { Rooms } from '../../src/core/rooms.js';
import type { RestSizes } from '../../src/core/run-rest.js';
import type { RunStore } from '../../src/core/run-store.js';
import { type RunLimits, Runs } from '../../src/core/runs.js';
import type { Logger, Metrics } from '../../src/core/telemetry.js';
import type { Outlet, Viewer } from '../../src/core/viewer.js';
import type { Frame } from '../../src/protocol/frames.js';
import { type BusFaults, SimBus } from './sim-bus.js';
import { Line, type LineFaults, type SimRooms, simLog } from './sim-log.js';
import { MortalClock, type VirtualClock } from './virtual-clock.js';

export const silent: Logger = { debug() {}, info() {}, warn() {}, error() {} };
export const noMetrics: Metrics = { add() {}, observe() {}, gauge() {} };

/** Followers of rooms, as a gateway's sockets would be. */
export class SimOutlet implements Outlet {
  readonly followers = new Map<RoomKey, Set<SimViewer>>();

  constructor(readonly clock: MortalClock) {}

  publish(room: RoomKey, frame: Frame, except?: Viewer): void {
    if (!this.clock.alive) return;
    for (const viewer of this.followers.get(room) ?? []) {
      if (viewer === except) continue;
      viewer.live.add(viewer.frames.length);
      viewer.send([frame]);
    }
  }
}

/** A connection of a reader that keeps what it gets; it can be slow. */
export class SimViewer implements Viewer {
  readonly eventsOnly = false;
  /** What a page may be, in bytes. */
  room = 512 * 1024;
  readonly frames: Frame[] = [];
  /** How many of the frames went to all who followed, and not to this reader alone: by their index. */
  readonly live = new Set<number>();
  closed: string | undefined;

  constructor(
    readonly id: string,
    readonly outlet: SimOutlet,
    readonly drain: () => Promise<boolean> = async () => true,
  ) {}

  get full(): boolean {
    return false;
  }

  send(frames: readonly Frame[]): void {
    if (!this.closed && this.outlet.clock.alive) this.frames.push(...frames);
  }

  follow(room: RoomKey): void {
    const set = this.outlet.followers.get(room) ?? new Set();
    this.outlet.followers.set(room, set.add(this));
  }

  unfollow(room: RoomKey): void {
    this.outlet.followers.get(room)?.delete(this);
  }

  drained(): Promise<boolean> {
    return this.closed ? Promise.resolve(false) : this.drain();
  }

  close(code: string): void {
    if (this.outlet.clock.alive) this.closed = code;
  }
}

export interface SimWorld {
  clock: VirtualClock;
  random: () => number;
  rooms: SimRooms;
  buses: SimBus[];
  bus: Omit<BusFaults, 'random'>;
  line: Omit<LineFaults, 'random'>;
  feedLimits: FeedsLimits;
  /** Called at each {@link MortalClock.crosses crossing} of a gateway, which may be killed there. */
  onCrossing: (gateway: SimGateway) => void;
  /** Where gateways have runs. */
  runs?: { store: (line: Line) => RunStore; limits: RunLimits; newId: () => string; rest?: RestSizes };
}

/** A gateway without sockets: the real cores over a simulated database and bus. It can be killed and frozen. */
export class SimGateway {
  readonly clock: MortalClock;
  readonly line: Line;
  readonly bus: SimBus;
  readonly outlet: SimOutlet;
  readonly feeds: Feeds;
  readonly runs: Runs | undefined;
  readonly rooms: Rooms;

  constructor(world: SimWorld, clockOff = 0) {
    const { random, buses, rooms, feedLimits } = world;
    const clock = new MortalClock(world.clock, clockOff);
    clock.onCrossing = () => world.onCrossing(this);
    this.clock = clock;
    this.outlet = new SimOutlet(clock);
    this.line = new Line(clock, { random, ...world.line });
    const bus = new SimBus(buses, clock, { random, ...world.bus });
    this.bus = bus;
    const log = simLog(rooms, this.line);
    const [metrics, logger] = [noMetrics, silent];
    const feeds = new Feeds({ log, bus, outlet: this.outlet, clock, metrics, logger, limits: feedLimits });
    this.feeds = feeds;
    const runs = world.runs
      ? new Runs({
          store: world.runs.store(this.line),
          bus,
          rooms: feeds,
          metrics,
          log: logger,
          clock,
          newId: world.runs.newId,
          limits: world.runs.limits,
          ...(world.runs.rest ? { rest: world.runs.rest } : {}),
        })
      : undefined;
    this.runs = runs;
    this.rooms = new Rooms({
      log,
      feeds,
      runs: runs ?? noRuns,
      bus,
      metrics,
      clock,
      memory: { check: () => undefined },
      limits: { roomsPerSession: 100, publishesPerSecond: 1_000_000 },
    });
    bus.onMessage((room, message) => {
      if (roomOf(room).startsWith('!')) runs?.receive(room, message);
      else this.rooms.receive(room, message);
    });
    feeds.start(
      runs ?? { openRoom: async () => {}, closeRoom: () => {}, restartRoom: () => {}, check: async () => {} },
    );
    runs?.start();
  }

  get alive(): boolean {
    return this.clock.alive;
  }

  /** As `kill -9`: what it waits for never happens, nothing more leaves it. */
  kill(): void {
    this.clock.alive = false;
    this.bus.cut();
  }

  /** As SIGSTOP and SIGCONT after `ms`: everything waits meanwhile. */
  freeze(ms: number): void {
    this.clock.frozenUntil = this.clock.world.now() + ms;
  }

  /** A request over the network, and its answer. Never settles where the gateway dies meanwhile. */
  request<T>(latencyMs: number, work: () => Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const back = (give: () => void) => void (this.alive && this.clock.world.after(latencyMs, give));
      this.clock.after(latencyMs, () => {
        let answer: Promise<T>;
        try {
          answer = work();
        } catch (problem) {
          return back(() => reject(problem));
        }
        answer.then(
          (result) => back(() => resolve(result)),
          (problem) => back(() => reject(problem)),
        );
      });
    });
  }
}

const noRest = { behind: false, keptBytes: 0, page: () => [], close: () => {} };
const noRuns = { join: () => ({ runs: [], rest: noRest }), receive: () => {}, liveIn: async () => [] };

/** A user who may do everything in the rooms of tenant `t`. */
export const user = (id: string): Principal => ({
  kind: 'user',
  id,
  tenant: 't',
  capabilities: { '*': ['join', 'publish', 'moderate', 'run.create', 'run.cancel'] },
});
