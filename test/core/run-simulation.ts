import type { FeedsLimits } from '../../src/core/feeds.js';
import type { RunStore } from '../../src/core/run-store.js';
import type { RunLimits, Runs } from '../../src/core/runs.js';
import { TuttiError } from '../../src/errors.js';
import { foldParts } from '../../src/protocol/fold.js';
import type { Part } from '../../src/protocol/parts.js';
import type { JsonText } from '../../src/protocol/primitives.js';
import { isTerminal } from '../../src/protocol/runs.js';
import { act, random } from '../support/random.js';
import { key, limits as quickLimits, Reader } from './feed-simulation.js';
import { Fences, RunWitness, StreamWitness } from './run-readers.js';
import { type RunRow, RunTable } from './run-table.js';
import { headOf, type Line, SimRooms } from './sim-log.js';
import { partsOf, SimWorker } from './sim-worker.js';
import { SimGateway, SimViewer, type SimWorld, user } from './simulation.js';
import { VirtualClock } from './virtual-clock.js';

/** What a join brings at once: everything, a few words, or everything but of what is told during a replay. */
const joins = [
  undefined,
  { replyBytes: 120, textChars: 12, replayBufferBytes: 2000 },
  undefined,
  { replyBytes: 10_000, textChars: 12, replayBufferBytes: 300 },
];
const feedLimits: FeedsLimits = { ...quickLimits, headCheckMs: 500 };
const limits: RunLimits = {
  leaseMs: 2000,
  commitMs: 100,
  segmentBytes: 200,
  uncommittedMaxBytes: 400,
  outputMaxBytes: 512 * 1024,
  queueTtlMs: 20_000,
  maxAttempts: 3,
  durationMaxMs: 15_000,
  sweepMs: 500,
  livePerTenant: 1000,
  livePerRoom: 1000,
  claimsWaitingMax: 1000,
  uncommittedTotalBytes: 16 * 1024 * 1024,
};
/** How long readers may lack what is stored, where nothing is wrong with their gateway, in ms. */
const BEHIND_MS = 2500;
/** What RUN2 promises beyond the lease, in ms. */
const LOST_MS = 5000;

type Gateway = SimGateway & { runs: Runs };

/** A world whose gateways have runs. */
export function runWorld(
  seed: number,
  { bus, line, join }: Pick<SimWorld, 'bus' | 'line'> & { join?: (typeof joins)[number] },
) {
  const next = random(seed);
  const clock = new VirtualClock();
  const rooms = new SimRooms(() => clock.now());
  const table = new RunTable(rooms, () => clock.now());
  const fences = new Fences();
  let ids = 0;
  const store = (own: Line): RunStore => ({
    ...table.store((work) => own.call(work)),
    claim: (claim) =>
      own.call(() => {
        const found = table.claim(claim);
        if (found) fences.add(found.run.id, found.run.attempt, found.run.fence);
        return found;
      }),
  });
  const newId = () => `run-${String(ids++).padStart(4, '0')}`;
  const runs = { limits, newId, store, ...(join ? { rest: join } : {}) };
  const world: SimWorld = {
    clock,
    random: next,
    rooms,
    buses: [],
    feedLimits: { ...feedLimits, ...join },
    bus,
    line,
    runs,
  };
  return { world, table, fences, gateway: () => made(world, () => 1) };
}

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
  ...{ steps: 60, drop: 0.1, lose: 0, away: 0, busDown: 0, kill: 0, freeze: 0, drain: 0, erase: 0 },
  ...{ workerDies: 0, workerFreezes: 0, workerMoves: 0 },
};

function planOf(seed: number): Plan {
  const next = random(seed ^ 0x0dd5);
  const some = (share: number) => (next() < 0.5 ? 0 : share);
  return {
    steps: 60,
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
 * says. `killAt` kills the first gateway after that many steps of virtual time instead.
 * @returns how many steps it took before everything was left to settle.
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
  const readers: { reader: Reader; witness: RunWitness; gateway: Gateway; since: number }[] = [];
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
    readers.push({ reader, witness, gateway, since: clock.now() });
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
    const current = () => stream.cut === cut && !cut.signal.aborted;
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
  const kill = (gateway: Gateway) => {
    gateway.kill();
    replace(gateway);
  };
  const drain = async (gateway: Gateway) => {
    replace(gateway);
    await gateway.request(0, () => gateway.runs.drain());
    gateway.runs.close();
    gateway.feeds.close();
    gateway.kill();
  };
  /** Asks until it is answered, under one mid. */
  const create = async (mid: string) => {
    for (;;) {
      const gateway = one(gateways);
      const payload = { room: 'r', model: 'm', input: '{"p":1}' as JsonText, mid };
      const answer = gateway.request(next() * 5, () => gateway.runs.create(user('a'), payload)).catch(() => undefined);
      if (await Promise.race([answer, clock.sleep(1000).then(() => undefined)])) return;
    }
  };
  const cancel = () => {
    const live = [...table.rows.values()].filter(({ state }) => !isTerminal(state));
    const gateway = one(gateways);
    if (live.length > 0) gateway.request(1, () => gateway.runs.cancel(user('a'), one(live).id)).catch(() => {});
  };
  if (killAt !== undefined) clock.onStep = (step) => void (step === killAt && kill(gateways[0] as Gateway));

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
      const well =
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
    [plan.kill, () => kill(one(gateways))],
    [plan.freeze, () => one(gateways).freeze(next() * 3000)],
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
    await clock.run(next() * 200);
    look();
  }

  const acted = clock.steps;
  world.line.lose = 0;
  for (const { line, bus } of gateways) {
    line.away = false;
    line.faults.lose = 0;
    bus.restore();
  }
  for (const worker of workers) worker.steady = true;
  await clock.run(3000);
  const bound =
    clock.now() + limits.maxAttempts * (limits.durationMaxMs + limits.leaseMs + LOST_MS) + limits.queueTtlMs;
  while ([...table.rows.values()].some(({ state }) => !isTerminal(state))) {
    if (clock.now() > bound) throw new Error('a run never ends');
    await clock.run(500);
    look();
  }
  for (let round = 0; round < 8; round += 1) {
    for (const entry of readers) {
      const { attached, viewer } = entry.reader;
      if (!attached || viewer.closed || entry.witness.lost) seat(entry, one(gateways));
    }
    for (const stream of streams) {
      if (stream.witness.ended || !stream.cut.signal.aborted || !table.rows.has(stream.witness.run)) continue;
      stream.gateway = one(gateways);
      watch(stream);
    }
    await clock.run(500);
    look();
  }
  const log = rooms.rooms.get(key);
  for (const { reader, witness } of readers) {
    const head = log && headOf(log);
    if (head && reader.position?.seq !== head.head)
      throw new Error(`a reader is at ${reader.position?.seq} of ${head.head}`);
    for (const row of table.rows.values()) settled(row, witness, reader.resyncs === 0);
  }
  for (const { witness } of streams) {
    const row = table.rows.get(witness.run);
    if (!row) continue;
    if (!witness.ended) throw new Error(`run ${row.id}: a stream never ends`);
    if (witness.ended.state !== row.state || (witness.from?.attempt !== row.attempt && row.length !== 0)) {
      throw new Error(`run ${row.id}: a stream ended ${witness.ended.state}, the run is ${row.state}`);
    }
  }
  return acted;
}

/** RUN2, from what is stored: every part of an attempt is what the worker said that held it. */
function judge(row: RunRow, fences: Fences, judged: WeakSet<object>): void {
  let n = 0;
  const own = [...row.segments.values()].filter(({ attempt }) => attempt === row.attempt).sort((a, b) => a.n - b.n);
  for (const segment of own) {
    if (segment.n !== n) throw new Error(`run ${row.id}: part ${n} is not stored`);
    n += segment.count;
    if (judged.has(segment)) continue;
    judged.add(segment);
    const said = JSON.parse(segment.parts) as Part[];
    if (JSON.stringify(partsOf(row.fence, segment.n, n)) !== JSON.stringify(said)) {
      throw new Error(`run ${row.id}: ${segment.parts} stored under fence ${row.fence}`);
    }
    fences.check(row.id, row.attempt, segment.n, said);
  }
  if (row.state !== 'queued' && n !== row.committed)
    throw new Error(`run ${row.id}: ${n} of ${row.committed} parts stored`);
}

/** RUN1 at the end: the reader holds what is stored, and one final state. */
function settled(row: RunRow, { runs, ends }: RunWitness, fromStart: boolean): void {
  const end = ends.get(row.id);
  if (end && (end.state !== row.state || end.length !== row.length)) throw new Error(`run ${row.id} ends otherwise`);
  const seen = runs.get(row.id);
  if (!seen && !end && fromStart) throw new Error(`run ${row.id}: a reader knows nothing of its end`);
  if (!seen) return;
  if (seen.state !== row.state || seen.next !== row.length || seen.attempt !== row.attempt) {
    throw new Error(
      `run ${row.id}: a reader has ${seen.state} at ${seen.next}, stored is ${row.state} at ${row.length}`,
    );
  }
  const folded = JSON.stringify(foldParts(partsOf(row.fence, 0, row.committed)));
  if (row.fence > 0 && row.state !== 'cancelled' && row.committed > 0 && folded !== JSON.stringify(row.output)) {
    throw new Error(`run ${row.id}: the output stored is not what its worker said`);
  }
}

function made(world: SimWorld, next: () => number): Gateway {
  const gateway = new SimGateway(world, next() < 0.2 ? (next() - 0.5) * 600_000 : 0);
  if (!gateway.runs) throw new Error('a gateway without runs');
  return gateway as Gateway;
}
