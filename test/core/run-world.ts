import type { FeedsLimits } from '../../src/core/feeds.js';
import type { RunStore } from '../../src/core/run-store.js';
import type { RunLimits, Runs } from '../../src/core/runs.js';
import { random } from '../support/random.js';
import { limits as quickLimits } from './feed-world.js';
import { Fences } from './run-readers.js';
import { RunTable } from './run-table.js';
import { type Line, SimRooms } from './sim-log.js';
import { SimGateway, type SimWorld } from './simulation.js';
import { VirtualClock } from './virtual-clock.js';

/** What a join brings at once: everything, a few words, or everything but of what is told during a replay. */
export const joins = [
  undefined,
  { replyBytes: 120, textChars: 12, replayBufferBytes: 2000 },
  undefined,
  { replyBytes: 10_000, textChars: 12, replayBufferBytes: 300 },
];
const feedLimits: FeedsLimits = { ...quickLimits, headCheckMs: 500 };
export const limits: RunLimits = {
  leaseMs: 2000,
  commitMs: 100,
  segmentBytes: 200,
  uncommittedMaxBytes: 400,
  outputMaxBytes: 512 * 1024,
  queueTtlMs: 10_000,
  maxAttempts: 3,
  durationMaxMs: 8000,
  sweepMs: 500,
  livePerTenant: 1000,
  livePerRoom: 1000,
  claimsWaitingMax: 1000,
  uncommittedTotalBytes: 16 * 1024 * 1024,
};
/** How long readers may lack what is stored, where nothing is wrong with their gateway, in ms. */
export const BEHIND_MS = 2500;
/** What RUN2 promises beyond the lease, in ms. */
export const LOST_MS = 5000;

export type Gateway = SimGateway & { runs: Runs };

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
    onCrossing: () => {},
  };
  return { world, table, fences, gateway: () => made(world, () => 1) };
}

/** A gateway with runs, whose clock may be off by minutes. */
export function made(world: SimWorld, next: () => number): Gateway {
  const gateway = new SimGateway(world, next() < 0.2 ? (next() - 0.5) * 600_000 : 0);
  if (!gateway.runs) throw new Error('a gateway without runs');
  return gateway as Gateway;
}
