import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { previousVersion } from '../support/previous.js';
import { catalog } from './faults/catalog.js';
import type { Fault, Stage } from './faults/fault.js';
import { POISON_SQL } from './load/publisher.js';
import type { TortureOptions } from './torture-options.js';
import { startWorld } from './world.js';
import { type Load, startLoad } from './world-load.js';
import { startWorkerProcesses } from './world-workers.js';

export const LOADS = 2;
/** Processes of workers only: what is killed or frozen is one of them, and others are left. */
export const WORKER_PROCESSES = 2;
const TENANTS = 4;
const ROOMS_PER_TENANT = 6;
/** Rooms of each tenant that the sockets of storms read, and events per second over all of them while no storm is on. */
const CROWD_ROOMS = 2;
const CROWD_RATE = 4;
/** Files of a process that are not for the sockets of a storm: one gateway may hold all of them. */
const OTHER_FILES = 1000;
/** Runs asked for per second, over all load processes. */
const RUNS_PER_SECOND = 3;
const PAYLOAD_BYTES = 120;
/** Until everybody has everything once all is healed and quiet, in ms. */
const SETTLE_MS = 90_000;
const INSPECT_MS = 500;
const MiB = 2 ** 20;

/** Installation, load and faults of one run. */
export interface TortureStage extends Stage {
  /** All load processes that run now. */
  readonly everybody: readonly Load[];
  /** Files the load processes write, those that were killed among them. */
  readonly histories: readonly string[];
  /** What was asked for and can be had here. */
  readonly faults: readonly Fault[];
  /** Faults that cannot be had here, with the reason. */
  readonly leftOut: readonly string[];
  end(): Promise<void>;
}

/**
 * Starts an installation and its load; whatever was started ends with this process.
 * @throws Error where something does not start; then all is ended.
 */
export async function setStage(options: TortureOptions, histories: string): Promise<TortureStage> {
  const ends: (() => unknown)[] = [];
  const end = async () => {
    for (const one of ends.splice(0).reverse()) await Promise.resolve(one()).catch(() => undefined);
  };
  try {
    const previous = await previousVersion();
    if (previous) ends.push(() => previous.end());
    const world = await startWorld({
      gateways: options.gateways,
      tenants: TENANTS,
      roomsPerTenant: ROOMS_PER_TENANT,
      diskBytes: Math.round((400 + 60 * options.minutes) * MiB),
      directory: options.out,
    });
    ends.push(() => world.end());
    await world.asSuperuser((sql) => sql.unsafe(POISON_SQL));
    mkdirSync(histories, { recursive: true });
    const loads: Load[] = [];
    ends.push(() => Promise.all(loads.map((load) => load.end())));
    const gateways = world.seats.map(({ name, url }) => ({ name, url }));
    for (let n = 1; n <= LOADS; n++) {
      const name = `load${n}`;
      const history = join(histories, `${name}.jsonl`);
      const seed = options.seed * 100 + n;
      const load = await startLoad({
        ...loadShare(options),
        name,
        seed,
        history,
        gateways,
        tenants: [...world.tenants],
      });
      loads.push(load);
    }
    const workers = await startWorkerProcesses(WORKER_PROCESSES, histories, {
      ...WORKERS,
      seed: options.seed * 100 + 50,
      gateways,
      tenants: [...world.tenants],
    });
    ends.push(() => workers.end());
    const crowd = await startLoad({
      ...CROWD,
      name: 'crowd',
      seed: options.seed * 100,
      history: join(histories, 'crowd.jsonl'),
      gateways: world.seats.map(({ name, directUrl }) => ({ name, url: directUrl })),
      // The same names for all tenants.
      tenants: world.tenants.map((tenant) => ({ ...tenant, rooms: crowdRooms })),
    });
    ends.push(() => crowd.end());
    const stage: Stage = {
      world,
      loads,
      workers,
      crowd,
      previous: previous?.main,
      noPrevious: previous
        ? undefined
        : 'the history of this repository is not there, so the version before is not either',
    };
    const fits = Math.max(1, Math.min(options.storm, openFiles() - OTHER_FILES));
    const chosen = choose(options.only, fits);
    const reason = (fault: Fault) => fault.impossible?.(stage);
    return {
      ...stage,
      get everybody() {
        return [...loads, ...workers.running, crowd];
      },
      get histories() {
        return [...[...loads, crowd].map(({ name }) => join(histories, `${name}.jsonl`)), ...workers.histories];
      },
      faults: chosen.filter((fault) => reason(fault) === undefined),
      leftOut: [
        ...chosen.flatMap((fault) => (reason(fault) === undefined ? [] : [`${fault.kind}: ${reason(fault)}`])),
        ...(fits < options.storm ? [fewerSockets(options.storm, fits)] : []),
      ],
      end,
    };
  } catch (error) {
    await end();
    throw error;
  }
}

/** @throws Error for a kind that there is not. */
function choose(only: readonly string[] | undefined, storm: number): Fault[] {
  const all = catalog(storm);
  if (!only) return all;
  const unknown = only.filter((kind) => !all.some((fault) => fault.kind === kind));
  if (unknown.length > 0) {
    throw new Error(`no such fault: ${unknown.join(', ')}. There are: ${all.map(({ kind }) => kind).join(', ')}`);
  }
  return all.filter(({ kind }) => only.includes(kind));
}

/** What each load process does. */
const loadShare = ({ rate }: TortureOptions) => ({
  publishers: TENANTS * ROOMS_PER_TENANT,
  httpPublishers: TENANTS,
  readers: (TENANTS * ROOMS_PER_TENANT) / 2,
  streamReaders: TENANTS,
  viewers: TENANTS * ROOMS_PER_TENANT,
  runStreams: TENANTS / 2,
  workers: TENANTS,
  httpWorkers: 0,
  sdkWorkers: 0,
  ratePerSecond: rate / LOADS,
  runsPerSecond: RUNS_PER_SECOND / LOADS,
  window: 64,
  payloadBytes: PAYLOAD_BYTES,
});

/** What each process of workers does. */
const WORKERS = { workers: TENANTS, httpWorkers: TENANTS / 2, sdkWorkers: TENANTS / 2 };

const crowdRooms = Array.from({ length: CROWD_ROOMS }, (_, n) => `crowd-${n + 1}`);

/** Somebody publishes to each room of storms and somebody reads it, whether there is a storm or not. */
const CROWD = {
  publishers: TENANTS * CROWD_ROOMS,
  httpPublishers: 0,
  readers: TENANTS * CROWD_ROOMS,
  streamReaders: 0,
  viewers: 0,
  runStreams: 0,
  workers: 0,
  httpWorkers: 0,
  sdkWorkers: 0,
  ratePerSecond: CROWD_RATE,
  runsPerSecond: 0,
};

/** How many files a process may have open: Node raises its limit to the most it is allowed. */
function openFiles(): number {
  const { userLimits } = process.report.getReport() as { userLimits?: { open_files?: { soft?: unknown } } };
  const soft = userLimits?.open_files?.soft;
  return typeof soft === 'number' ? soft : Number.POSITIVE_INFINITY;
}

const fewerSockets = (wanted: number, fits: number) =>
  `client-storm: ${(wanted - fits).toLocaleString('en')} of ${wanted.toLocaleString('en')} sockets, as a process may open only ${openFiles().toLocaleString('en')} files (\`ulimit -n\`)`;

/** Looks after the processes, and puts what they must not do into `wrong`. @returns what ends it. */
export function watch(stage: TortureStage, wrong: string[]): () => Promise<void> {
  const over = new AbortController();
  const look = async () => {
    while (!over.signal.aborted) {
      for (const seat of stage.world.seats) wrong.push(...(await seat.inspect()));
      for (const { died } of stage.everybody) if (died !== undefined && !wrong.includes(died)) wrong.push(died);
      await sleep(INSPECT_MS, undefined, { signal: over.signal }).catch(() => undefined);
    }
  };
  const looking = look().catch((error: unknown) => void wrong.push(`a gateway did not come back: ${error}`));
  return async () => {
    over.abort();
    await looking;
  };
}

/** Ends sending, and waits until everything has its answer, every run its end, and every reader everything. */
export async function settle(loads: readonly Load[], wrong: string[]): Promise<void> {
  for (const load of loads) load.say('quiet');
  const settled = () =>
    loads.every(({ died, status }) => {
      const { phase, open, behind, runsOpen, joined, readers } = status;
      const settled = phase === 'quiet' && open === 0 && behind === 0 && runsOpen === 0 && joined === readers;
      return died !== undefined || settled;
    });
  for (const deadline = Date.now() + SETTLE_MS; !settled(); await sleep(200)) {
    if (Date.now() < deadline) continue;
    wrong.push(
      `not settled ${SETTLE_MS / 1000} s after all was healed: ${loads.map(({ status }) => JSON.stringify(status)).join(' ')}`,
    );
    return;
  }
  // What is on its way though nobody waits for it, such as the last parts to readers of runs.
  await sleep(1500);
}
