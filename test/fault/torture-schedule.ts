import { between, pick, random, shuffled } from '../support/random.js';
import type { Fault } from './faults/fault.js';

/** One fault that will be injected. Times are ms since the load began. */
export interface Planned {
  id: number;
  atMs: number;
  kind: string;
  lastsMs: number;
  /** Which gateway it hits, for faults that hit one. */
  seat: number;
  /** Of the randomness the fault may use. */
  seed: number;
}

export interface ScheduleOptions {
  seed: number;
  gateways: number;
  /** First and last time a fault may begin, ms. */
  fromMs: number;
  toMs: number;
}

/** Time between two faults, in ms, at least and at most: shorter than what is to come out, as some are alone for long. */
const GAP_MS = [1000, 4100] as const;
/** What putting things back may take beside the fault's own time, in ms. */
const MENDING_MS = 3000;
/** How long all is well before and after a fault that is alone, in ms. */
const ALONE_MS = 1000;

/**
 * Which fault comes when, drawn from the seed alone: the same for the same seed and faults. Kinds come by their
 * weights, all of them once in a while; no part is hit twice at once, and one gateway is left alone at any time. At times a fault
 * that lasts long has no other beside it, so that its recovery can be measured.
 */
export function scheduleFaults(faults: readonly Fault[], options: ScheduleOptions): Planned[] {
  const next = random(options.seed);
  const planned: Planned[] = [];
  const busyUntil = new Map<string, number>();
  const isFree = (lane: string, at: number) => (busyUntil.get(lane) ?? 0) <= at;
  const seats = Array.from({ length: options.gateways }, (_, seat) => seat);
  const freeSeats = (at: number) => {
    const free = seats.filter((seat) => isFree(laneOf('gateway', seat), at));
    return free.length > 1 ? free : [];
  };
  const lanes = [...new Set(faults.flatMap(({ part }) => seats.map((seat) => laneOf(part, seat))))];
  const times = new Map<string, number>();
  let bag: Fault[] = [];
  for (let at = options.fromMs; at <= options.toMs; at += between(...GAP_MS, next)) {
    if (bag.length === 0)
      bag = shuffled(
        faults.flatMap((fault) => Array<Fault>(fault.weight).fill(fault)),
        next,
      );
    const fits = ({ part, preparesMs = 0 }: Fault) =>
      at + preparesMs <= options.toMs && (part === 'gateway' ? freeSeats(at).length > 0 : isFree(part, at));
    const index = bag.findIndex(fits);
    const [fault] = index < 0 ? [] : bag.splice(index, 1);
    if (!fault) continue;
    const seat = pick(fault.part === 'gateway' ? freeSeats(at) : seats, next);
    const lastsMs = between(...fault.lasts, next);
    const time = times.get(fault.kind) ?? 0;
    times.set(fault.kind, time + 1);
    const { aloneEvery } = fault;
    const alone = aloneEvery !== undefined && time % aloneEvery === 1;
    const atMs = alone ? Math.max(at, ...busyUntil.values()) + ALONE_MS : at;
    const overMs = atMs + (fault.preparesMs ?? 0) + lastsMs + MENDING_MS;
    if (atMs + (fault.preparesMs ?? 0) > options.toMs) continue;
    busyUntil.set(laneOf(fault.part, seat), overMs);
    if (alone) {
      for (const lane of lanes) busyUntil.set(lane, overMs);
      at = overMs + ALONE_MS;
    }
    planned.push({
      id: planned.length + 1,
      atMs,
      kind: fault.kind,
      lastsMs,
      seat,
      seed: between(1, 2 ** 30, next),
    });
  }
  return planned;
}

/** Faults of one lane follow one another. */
export const laneOf = (part: Fault['part'], seat: number): string => (part === 'gateway' ? `gateway ${seat}` : part);
