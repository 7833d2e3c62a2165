import type { FeedsLimits } from '../../src/core/feeds.js';
import { roomKey } from '../../src/core/keys.js';
import type { JoinFrom } from '../../src/protocol/commands.js';
import { type EventRecord, type Frame, payloadOf } from '../../src/protocol/frames.js';
import { type Position, toJsonText } from '../../src/protocol/primitives.js';
import type { LiveRun } from '../../src/protocol/runs.js';
import { act, random } from '../support/random.js';
import { headOf, SimRooms } from './sim-log.js';
import { SimGateway, SimViewer, type SimWorld, user } from './simulation.js';
import { VirtualClock } from './virtual-clock.js';

export const key = roomKey('t', 'r');

export const limits: FeedsLimits = {
  ringBytes: 4096,
  gapRepairMs: 50,
  replayBufferBytes: 1024 * 1024,
  ringBytesTotal: 64 * 1024,
  headCheckMs: 1000,
  lingerMs: 500,
  roomsOpen: { total: 1000, perTenant: 1000 },
};

/** A world with one room `r` of tenant `t` and some gateways. */
export function feedWorld(
  seed: number,
  { bus = { drop: 0.1, repeat: 0.1, maxDelayMs: 80 }, lose = 0, gateways = 2, feedLimits = limits } = {},
) {
  const next = random(seed);
  const clock = new VirtualClock();
  const rooms = new SimRooms(() => clock.now());
  const line = { maxDelayMs: 20, lose };
  const world: SimWorld = { clock, random: next, rooms, buses: [], bus, line, feedLimits };
  const gateways_ = Array.from({ length: gateways }, () => new SimGateway(world));
  const node = (i: number): SimGateway => {
    const found = gateways_[i];
    if (!found) throw new Error(`no gateway ${i}`);
    return found;
  };
  const publish = (gateway: number, text: string) => {
    const event = { room: 'r', type: 'x', data: toJsonText(text), mid: text };
    return node(gateway).rooms.publish(user('a'), event);
  };
  return { ...world, world, gateways: gateways_, node, publish };
}

/** A reader that joins, leaves and comes back somewhere with its position, and checks what it gets. */
export class Reader {
  position: Position | undefined;
  read = 0;
  readonly texts: string[] = [];
  resyncs = 0;
  attached = false;
  problem: Error | undefined;
  #joins = 0;

  constructor(
    readonly rooms: SimRooms,
    public viewer: SimViewer,
    /** Is told of everything that is read, in order. */
    readonly sink?: {
      joined(live: readonly LiveRun[]): void;
      resynced(): void;
      event(json: string): void;
      frame(frame: Frame, live: boolean): void;
    },
  ) {}

  /** Takes what came; throws at the first gap, repeat, reorder, invention or needless resync. */
  take(): void {
    if (this.problem) throw this.problem;
    for (; this.read < this.viewer.frames.length; this.read += 1) {
      const frame = this.viewer.frames[this.read] as Frame;
      if (frame.startsWith('42["room.resync"')) this.#resync(JSON.parse(payloadOf(frame, 'room.resync')).position);
      if (!frame.startsWith('42["event"')) {
        this.sink?.frame(frame, this.viewer.live.has(this.read));
        continue;
      }
      const json = payloadOf(frame, 'event');
      const { epoch, seq, mid } = JSON.parse(json) as EventRecord;
      if (!this.position) throw new Error('an event came before the reply');
      if (epoch !== this.position.epoch) throw new Error(`epoch ${epoch} after ${this.position.epoch}`);
      if (seq !== this.position.seq + 1) throw new Error(`seq ${seq} after ${this.position.seq}`);
      if (!this.rooms.ever.has(`${epoch} ${seq} ${mid}`)) throw new Error(`${mid} was never committed as ${seq}`);
      this.position = { epoch, seq };
      this.texts.push(mid);
      this.sink?.event(json);
    }
  }

  join(gateway: SimGateway, otherwise: JoinFrom = 'start', latencyMs = 0): void {
    const from = this.position ?? otherwise;
    const { viewer } = this;
    const round = ++this.#joins;
    this.attached = false;
    const joined = gateway.request(latencyMs, () =>
      gateway.rooms.join(user('reader'), { room: 'r', from }, viewer, ({ position, resync, runs }) => {
        if (viewer !== this.viewer || round !== this.#joins) return;
        this.attached = true;
        try {
          this.take();
          this.#joined(from, position, resync !== undefined);
          this.sink?.joined(runs);
        } catch (problem) {
          this.problem = problem as Error;
        }
      }),
    );
    joined.catch((problem) => {
      if (problem?.code === undefined) this.problem = problem;
    });
  }

  #joined(from: JoinFrom, position: Position, resync: boolean): void {
    if (resync) this.#resync(position);
    else if (typeof from === 'object' && (position.epoch !== from.epoch || position.seq !== from.seq)) {
      throw new Error(`resumed at ${position.seq} instead of ${from.seq}`);
    }
    this.position = position;
  }

  /** On a new connection; the old one says nothing any more. */
  move(viewer: SimViewer): void {
    this.take();
    this.viewer.closed = 'gone';
    this.viewer = viewer;
    this.read = 0;
    this.attached = false;
  }

  /** Only a log that is another one, or that has forgotten, makes a reader start over. */
  #resync(to: Position): void {
    this.resyncs += 1;
    const log = this.rooms.rooms.get(key);
    const at = this.position;
    const due = !at || at.epoch !== to.epoch || at.epoch !== log?.epoch || log.floor > at.seq;
    if (!due) throw new Error(`a needless resync at ${at.seq}`);
    this.position = to;
    this.sink?.resynced();
  }
}

/** Which faults a run of the simulation has; each seed has its own choice. */
interface Plan {
  steps: number;
  lose: number;
  away: number;
  busDown: number;
  kill: number;
  freeze: number;
  upheaval: number;
}

const calm: Plan = { steps: 60, lose: 0, away: 0.05, busDown: 0, kill: 0, freeze: 0, upheaval: 0 };

function planOf(seed: number): Plan {
  const next = random(seed ^ 0x5eed);
  const some = (share: number) => (next() < 0.5 ? 0 : share);
  if (seed % 4 === 0) return calm;
  return {
    steps: 60,
    lose: some(0.1),
    away: some(0.04),
    busDown: some(0.04),
    kill: some(0.06),
    freeze: some(0.04),
    upheaval: some(0.03),
  };
}

/**
 * Publishers and readers on three gateways whose database, bus and processes fail as the seed says. `killAt` kills
 * the first gateway after that many steps of virtual time instead.
 * @returns the number of steps it took.
 */
export async function simulateFeeds(seed: number, killAt?: number): Promise<number> {
  const plan = killAt === undefined ? planOf(seed) : { ...calm, steps: 25, away: 0 };
  const feedLimits = { ...limits, ringBytes: seed % 3 === 0 ? 600 : 4096 };
  const {
    world,
    random: next,
    clock,
    rooms,
    gateways,
    node,
  } = feedWorld(seed, {
    gateways: killAt === undefined ? 3 : 2,
    lose: plan.lose,
    feedLimits,
  });
  if (seed % 5 === 0) rooms.pageMax = 7;
  const readers: Reader[] = [];
  const gatewayOf = new Map<Reader, SimGateway>();
  const any = () => Math.floor(next() * gateways.length);

  const seat = (reader: Reader | undefined, gateway: SimGateway) => {
    const slow = next() < 0.3;
    const viewer: SimViewer = new SimViewer(`v${next()}`, gateway.outlet, () =>
      slow
        ? new Promise((done) => gateway.clock.after(next() * 100, () => done(!viewer.closed)))
        : Promise.resolve(true),
    );
    const seated = reader ?? new Reader(rooms, viewer);
    if (reader) {
      const { viewer: old } = reader;
      const before = gatewayOf.get(reader);
      reader.move(viewer);
      if (before?.alive) before.clock.soon(() => before.feeds.leaveAll(old));
    } else readers.push(seated);
    gatewayOf.set(seated, gateway);
    seated.join(gateway, next() < 0.8 ? 'start' : 'latest', next() * 5);
  };
  const kill = (at: number) => {
    const gone = node(at);
    gone.kill();
    gateways[at] = new SimGateway(world);
    for (const reader of readers) {
      if (gatewayOf.get(reader) === gone)
        clock.after(next() * 300, () => gatewayOf.get(reader) === gone && seat(reader, node(any())));
    }
  };
  /** Sends until it is acknowledged, at another gateway each time. */
  const publish = async (mid: string) => {
    for (;;) {
      const gateway = node(any());
      const event = { room: 'r', type: 'x', data: toJsonText(mid), mid };
      const answer = gateway.request(next() * 5, () => gateway.rooms.publish(user('a'), event));
      const late = clock.sleep(1000).then(() => undefined);
      const acked = await Promise.race([answer.catch(() => undefined), late]);
      if (!acked) continue;
      const { epoch, seq } = acked.position;
      if (!rooms.ever.has(`${epoch} ${seq} ${mid}`)) problems.push(`${mid} is acknowledged and was never stored`);
      return;
    }
  };
  const problems: string[] = [];
  if (killAt !== undefined) clock.onStep = (step) => void (step === killAt && kill(0));

  let published = 0;
  const upheaval = () => {
    const dice = next();
    const log = rooms.rooms.get(key);
    if (!log) return;
    const gateway = node(any());
    if (dice < 0.4) void gateway.request(1, () => gateway.rooms.erase(user('a'), 'r')).catch(() => {});
    else if (dice < 0.7) rooms.restore(key, Math.floor(headOf(log).head * next()));
    else rooms.trim(key, Math.floor(headOf(log).head * next()));
  };
  const acts: [number, () => void][] = [
    [0.5, () => void publish(`m${published++}`)],
    [0.15, () => seat(undefined, node(any()))],
    [0.15, () => readers.length > 0 && seat(readers[Math.floor(next() * readers.length)], node(any()))],
    [
      plan.away,
      () => {
        const { line } = node(any());
        line.away = !line.away;
      },
    ],
    [
      plan.busDown,
      () => {
        const { bus } = node(any());
        if (bus.down) bus.restore();
        else bus.down = true;
      },
    ],
    [plan.kill, () => kill(any())],
    [plan.freeze, () => node(any()).freeze(next() * 1500)],
    [plan.upheaval, upheaval],
  ];
  for (let step = 0; step < plan.steps; step += 1) {
    act(acts, next);
    await clock.run(next() * 60);
    for (const reader of readers) reader.take();
  }

  world.line.lose = 0;
  for (const { line, bus } of gateways) {
    line.away = false;
    line.faults.lose = 0;
    bus.restore();
  }
  await clock.run(1500);
  for (let round = 0; readers.some(({ attached, viewer }) => !attached || viewer.closed); round += 1) {
    if (round > 20) throw new Error('a reader cannot join');
    for (const reader of readers) {
      if (!reader.attached || reader.viewer.closed) seat(reader, node(any()));
    }
    await clock.run(400);
  }
  await clock.run(2000 + 500);
  const log = rooms.rooms.get(key);
  for (const reader of readers) {
    reader.take();
    const { epoch, seq } = reader.position ?? { epoch: '', seq: -1 };
    const head = log ? headOf(log) : { epoch, head: seq };
    if (epoch !== head.epoch || seq !== head.head)
      problems.push(`a reader is at ${epoch}:${seq} of ${head.epoch}:${head.head}`);
    if (reader.resyncs > 0 && plan.upheaval === 0) problems.push('a resync without a reason');
  }
  if (problems.length > 0) throw new Error(problems.slice(0, 3).join('; '));
  return clock.steps;
}
