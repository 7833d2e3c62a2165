import { toJsonText } from '../../src/protocol/primitives.js';
import { act, random } from '../support/random.js';
import { Crashes } from './crashes.js';
import { Reader } from './feed-reader.js';
import { feedWorld, key, limits } from './feed-world.js';
import { headOf } from './sim-log.js';
import { SimGateway, SimViewer, user } from './simulation.js';

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
 * Publishers and readers on three gateways whose database, bus and processes fail as the seed says. With `killAt` it is
 * a short life of two where nothing fails but the one gateway that makes this crossing, which dies there.
 * @returns how many crossings there were before everything was left to settle.
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
    if (slow) viewer.room = 200 + Math.floor(next() * 1000);
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
  const kill = (gone: SimGateway) => {
    gone.kill();
    gateways[gateways.indexOf(gone)] = new SimGateway(world);
    for (const reader of readers) {
      if (gatewayOf.get(reader) === gone)
        clock.after(next() * 300, () => gatewayOf.get(reader) === gone && seat(reader, node(any())));
    }
  };
  /** Sends until it is acknowledged, at another gateway each time. */
  const publish = async (mid: string) => {
    const data = toJsonText(next() < 0.2 ? 'x'.repeat(next() * 500) : mid);
    for (;;) {
      const gateway = node(any());
      const event = { room: 'r', type: 'x', data, mid };
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
  const crashes = new Crashes(kill, killAt);
  world.onCrossing = (gateway) => crashes.crossing(gateway);

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
    [plan.kill, () => crashes.doom(node(any()), Math.floor(next() * next() * 30))],
    [plan.freeze, () => node(any()).freeze(next() * 1500)],
    [plan.upheaval, upheaval],
  ];
  for (let step = 0; step < plan.steps; step += 1) {
    act(acts, next);
    await clock.run(next() * 60);
    for (const reader of readers) reader.take();
  }

  crashes.end();
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
  return crashes.crossings;
}
