import { TuttiError } from '../../src/errors.js';
import type { JsonText } from '../../src/protocol/primitives.js';
import { isTerminal } from '../../src/protocol/runs.js';
import { act, random } from '../support/random.js';
import { Crashes } from './crashes.js';
import { Reader } from './feed-reader.js';
import { key } from './feed-world.js';
import { disagreement, judge } from './run-judge.js';
import { RunWitness, StreamWitness } from './run-readers.js';
import { BEHIND_MS, type Gateway, joins, LOST_MS, limits, made, runWorld } from './run-world.js';
import { headOf } from './sim-log.js';
import { SimWorker } from './sim-worker.js';
import { SimViewer, user } from './simulation.js';

/** How often, every half second, readers may be brought back at the end before they have everything. */
const ROUNDS_MAX = 14;

/** Which faults a run of the simulation has; each seed has its own choice. */
interface Plan {
  steps: number;
  drop: number;
  lose: number;
  away: number;
  busDown: number;
  kill: number;
  freeze: number;
  drain: number;
  erase: number;
  workerDies: number;
  workerFreezes: number;
  workerMoves: number;
}

const calm: Plan = {
  ...{ steps: 40, drop: 0.1, lose: 0, away: 0, busDown: 0, kill: 0, freeze: 0, drain: 0, erase: 0 },
  ...{ workerDies: 0, workerFreezes: 0, workerMoves: 0 },
};

function planOf(seed: number): Plan {
  const next = random(seed ^ 0x0dd5);
  const some = (share: number) => (next() < 0.5 ? 0 : share);
  return {
    steps: 40,
    drop: some(0.3),
    lose: some(0.1),
    away: some(0.04),
    busDown: some(0.04),
    kill: some(0.06),
    freeze: some(0.05),
    drain: some(0.04),
    erase: some(0.02),
    workerDies: some(0.06),
    workerFreezes: some(0.08),
    workerMoves: some(0.1),
  };
}

/** A stream of one run's output that reconnects where it was cut. */
interface Stream {
  witness: StreamWitness;
  gateway: Gateway;
  cut: AbortController;
}

/**
 * Several gateways with runs, their workers and their readers, whose database, bus and processes fail as the seed
 * says. With `killAt` it is a short life of two where little fails but the one gateway that makes this crossing, which
 * dies there.
 * @returns how many crossings there were before everything was left to settle.
 */
export async function simulateRuns(seed: number, killAt?: number): Promise<number> {
  const plan = killAt === undefined ? planOf(seed) : { ...calm, steps: 12 };
  const bus = { drop: plan.drop, repeat: 0.1, maxDelayMs: 80 };
  const join = joins[seed % joins.length];
  const paged = join !== undefined;
  const { world, table, fences } = runWorld(seed, { bus, line: { maxDelayMs: 20, lose: plan.lose }, join });
  const { random: next, clock, rooms } = world;
  const gateways = Array.from({ length: killAt === undefined ? 3 : 2 }, () => made(world, next));
  const born = new Map<Gateway, number>();
  const one = <T>(of: readonly T[]): T => {
    const found = of[Math.floor(next() * of.length)];
    if (found === undefined) throw new Error('nothing to choose from');
    return found;
  };
  const problems: string[] = [];
  const readers: { reader: Reader; witness: RunWitness; gateway: Gateway; since: number; frames: number }[] = [];
  const streams: Stream[] = [];
  const workerWorld = {
    ...{ clock, random: next },
    gateway: () => one(gateways),
    problem: (text: string) => void problems.push(text),
  };
  let workers = Array.from({ length: 2 }, () => new SimWorker(workerWorld));

  const seat = (entry: (typeof readers)[number] | undefined, gateway: Gateway) => {
    const viewer: SimViewer = new SimViewer(
      `v${next()}`,
      gateway.outlet,
      pace(gateway, () => !viewer.closed),
    );
    if (paged) viewer.room = 200 + Math.floor(next() * 1000);
    if (entry) {
      const { viewer: old } = entry.reader;
      const { gateway: before } = entry;
      entry.reader.move(viewer);
      before.clock.soon(() => before.feeds.leaveAll(old));
      entry.gateway = gateway;
      entry.reader.join(gateway, 'start', next() * 5);
      return;
    }
    const witness = new RunWitness(fences, paged);
    const reader = new Reader(rooms, viewer, witness);
    readers.push({ reader, witness, gateway, since: clock.now(), frames: 0 });
    reader.join(gateway, 'start', next() * 5);
  };
  const pace = (gateway: Gateway, goes: () => boolean): (() => Promise<boolean>) => {
    const slow = next() < 0.3;
    return () =>
      slow ? new Promise((done) => gateway.clock.after(next() * 100, () => done(goes()))) : Promise.resolve(goes());
  };
  const watch = (stream: Stream) => {
    const cut = new AbortController();
    const { witness, gateway } = stream;
    stream.cut = cut;
    const current = () => gateway.alive && stream.cut === cut && !cut.signal.aborted;
    const watcher = witness.watcher(current, pace(gateway, current));
    gateway
      .request(next() * 5, () => gateway.runs.watch(user('s'), witness.run, witness.from, watcher, cut.signal))
      .catch((problem) => {
        if (!(problem instanceof TuttiError)) witness.problem = problem;
      })
      .then(() => current() && cut.abort());
  };
  const replace = (gateway: Gateway) => {
    const fresh = made(world, next);
    born.set(fresh, clock.now());
    gateways[gateways.indexOf(gateway)] = fresh;
    for (const entry of readers) {
      if (entry.gateway === gateway) {
        clock.after(next() * 300, () => entry.gateway === gateway && seat(entry, one(gateways)));
      }
    }
    for (const stream of streams) if (stream.gateway === gateway) stream.cut.abort();
  };
  /** One that drains has been replaced already. */
  const kill = (gateway: Gateway) => {
    gateway.kill();
    if (gateways.includes(gateway)) replace(gateway);
  };
  const drain = async (gateway: Gateway) => {
    replace(gateway);
    await gateway.request(0, () => gateway.runs.drain());
    gateway.runs.close();
    gateway.feeds.close();
    gateway.kill();
  };
  let asking = 0;
  /** Asks until it is answered, under one mid. */
  const create = async (mid: string) => {
    asking += 1;
    for (;;) {
      const gateway = one(gateways);
      const payload = { room: 'r', model: 'm', input: '{"p":1}' as JsonText, mid };
      const answer = gateway.request(next() * 5, () => gateway.runs.create(user('a'), payload)).catch(() => undefined);
      if (await Promise.race([answer, clock.sleep(1000).then(() => undefined)])) break;
    }
    asking -= 1;
  };
  const cancel = () => {
    const live = [...table.rows.values()].filter(({ state }) => !isTerminal(state));
    const gateway = one(gateways);
    if (live.length > 0) gateway.request(1, () => gateway.runs.cancel(user('a'), one(live).id)).catch(() => {});
  };
  const crashes = new Crashes((gateway) => kill(gateway as Gateway), killAt);
  world.onCrossing = (gateway) => crashes.crossing(gateway);

  /** A gateway that could look for lost leases, and since when there was one. */
  let sweptSince = 0;
  const judged = new WeakSet<object>();
  // Where calls of the database fail, so do checks: several in a row now and then.
  const behindMs = plan.lose > 0 ? 4 * BEHIND_MS : BEHIND_MS;
  const past: { at: number; stored: { id: string; attempt: number; n: number }[] }[] = [];
  /** Readers have by now what was stored a while ago, whatever the bus lost. */
  const caughtUp = () => {
    const now = clock.now();
    const stored = [...table.rows.values()].map(({ id, attempt, committed: n }) => ({ id, attempt, n }));
    past.push({ at: now, stored });
    while ((past[1]?.at ?? now) < now - behindMs) past.shift();
    for (const entry of readers) {
      const { reader, witness, gateway } = entry;
      const { viewer } = reader;
      // One in replay that takes little at a time lacks something for as long as that lasts; it must get on.
      const takes = !gateway.outlet.followers.get(key)?.has(viewer) && viewer.frames.length > entry.frames;
      entry.frames = viewer.frames.length;
      const well =
        !takes &&
        reader.attached &&
        !reader.viewer.closed &&
        !witness.lost &&
        !gateway.line.away &&
        gateway.clock.frozenUntil < now;
      if (!well || !gateway.alive) entry.since = now;
      if (entry.since > now - behindMs) continue;
      for (const { id, attempt, n } of past[0]?.stored ?? []) {
        const row = table.rows.get(id);
        if (!row || isTerminal(row.state) || row.attempt !== attempt) continue;
        const seen = witness.runs.get(id);
        if (!seen || (seen.attempt === attempt && seen.next < n))
          throw new Error(`run ${id}: a reader lacks part ${seen?.next} of ${n}`);
      }
    }
  };
  const look = () => {
    for (const { reader } of readers) {
      reader.take();
      if (reader.viewer.closed === 'slow_consumer') throw new Error('a slow reader is cut off');
    }
    for (const { witness } of streams) if (witness.problem) throw witness.problem;
    const now = clock.now();
    const fit = gateways.some(
      (gateway) =>
        !gateway.line.away && gateway.clock.frozenUntil < now && (born.get(gateway) ?? 0) + limits.sweepMs < now,
    );
    caughtUp();
    if (!fit) sweptSince = now;
    for (const row of table.rows.values()) {
      judge(row, fences, judged);
      const held = row.state === 'claimed' || row.state === 'streaming';
      if (held && row.leaseUntil < now - LOST_MS && sweptSince < now - LOST_MS)
        throw new Error(`run ${row.id} is lost and ${row.state}`);
    }
    if (problems.length > 0) throw new Error(problems.slice(0, 3).join('; '));
  };

  let made_ = 0;
  const acts: [number, () => void][] = [
    [0.2, () => void create(`c${made_++}`)],
    [0.1, () => seat(undefined, one(gateways))],
    [0.15, () => readers.length > 0 && seat(one(readers), one(gateways))],
    [
      0.1,
      () => {
        if (table.rows.size === 0) return;
        const witness = new StreamWitness(one([...table.rows.keys()]), fences);
        const stream = { witness, gateway: one(gateways), cut: new AbortController() };
        streams.push(stream);
        watch(stream);
      },
    ],
    [
      0.1,
      () => {
        const open = streams.filter(({ witness }) => !witness.ended);
        if (open.length === 0) return;
        const stream = one(open);
        stream.cut.abort();
        stream.gateway = one(gateways);
        watch(stream);
      },
    ],
    [0.04, cancel],
    [
      plan.away,
      () => {
        const { line } = one(gateways);
        line.away = !line.away;
      },
    ],
    [
      plan.busDown,
      () => {
        const { bus } = one(gateways);
        if (bus.down) bus.restore();
        else bus.down = true;
      },
    ],
    [plan.kill, () => crashes.doom(one(gateways), Math.floor(next() * next() * 60))],
    [plan.freeze, () => one(gateways).freeze(next() * 1500)],
    [plan.drain, () => void drain(one(gateways))],
    [
      plan.erase,
      () => {
        const gateway = one(gateways);
        gateway.request(1, () => gateway.rooms.erase(user('a'), 'r')).catch(() => {});
      },
    ],
    [
      plan.workerDies,
      () => {
        const gone = one(workers);
        gone.alive = false;
        workers = [...workers.filter((other) => other !== gone), new SimWorker(workerWorld)];
      },
    ],
    [
      plan.workerFreezes,
      () => {
        one(workers).frozenUntil = clock.now() + next() * 2 * limits.leaseMs;
      },
    ],
    [plan.workerMoves, () => one(workers).move()],
  ];
  for (let step = 0; step < plan.steps; step += 1) {
    act(acts, next);
    await clock.run(next() * 100);
    look();
  }

  crashes.end();
  world.line.lose = 0;
  for (const { line, bus } of gateways) {
    line.away = false;
    line.faults.lose = 0;
    bus.restore();
  }
  for (const worker of workers) worker.steady = true;
  const bound =
    clock.now() + limits.maxAttempts * (limits.durationMaxMs + limits.leaseMs + LOST_MS) + limits.queueTtlMs;
  do {
    if (clock.now() > bound) throw new Error('a run never ends');
    await clock.run(500);
    look();
  } while (asking > 0 || [...table.rows.values()].some(({ state }) => !isTerminal(state)));
  /** What readers and streams have that is not so. */
  const amiss = (): string | undefined => {
    const log = rooms.rooms.get(key);
    for (const { reader, witness } of readers) {
      const head = log && headOf(log);
      const { epoch, seq } = reader.position ?? {};
      if (head && (epoch !== head.epoch || seq !== head.head)) {
        return `a reader is at ${epoch}:${seq} of ${head.epoch}:${head.head}`;
      }
      for (const row of table.rows.values()) {
        const otherwise = disagreement(row, witness, reader.resyncs === 0);
        if (otherwise) return otherwise;
      }
    }
    for (const { witness } of streams) {
      const row = table.rows.get(witness.run);
      if (!row) continue;
      if (!witness.ended) return `run ${row.id}: a stream never ends`;
      if (witness.ended.state !== row.state || (witness.from?.attempt !== row.attempt && row.length !== 0)) {
        return `run ${row.id}: a stream ended ${witness.ended.state}, the run is ${row.state}`;
      }
    }
    return undefined;
  };
  const round = async (ms: number) => {
    for (const entry of readers) {
      const { attached, viewer } = entry.reader;
      if (!attached || viewer.closed || entry.witness.lost) seat(entry, one(gateways));
    }
    for (const stream of streams) {
      if (stream.witness.ended || !stream.cut.signal.aborted || !table.rows.has(stream.witness.run)) continue;
      stream.gateway = one(gateways);
      watch(stream);
    }
    await clock.run(ms);
    look();
  };
  for (let rounds = 0; rounds < ROUNDS_MAX && amiss(); rounds += 1) await round(500);
  // What is still under way changes nothing.
  await round(1000);
  const wrong = amiss();
  if (wrong) throw new Error(wrong);
  return crashes.crossings;
}
