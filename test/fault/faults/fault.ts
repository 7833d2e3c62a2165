import type { World } from '../world.js';
import type { Load } from '../world-load.js';
import type { Seat } from '../world-seat.js';
import type { WorkerProcesses } from '../world-workers.js';

/** What a fault takes away. Two faults of one part are never on at once; a gateway is a part by itself. */
export type Part = 'gateway' | 'redis' | 'postgres' | 'clients' | 'workers' | 'tenants';

/** What faults work on. */
export interface Stage {
  readonly world: World;
  readonly loads: readonly Load[];
  readonly workers: WorkerProcesses;
  /** A load process of its own for sockets by the thousand; nothing else is done to its clients. */
  readonly crowd: Load;
  /** `main.js` of the release before; `undefined` where `noPrevious` says why. */
  readonly previous: string | undefined;
  readonly noPrevious: string | undefined;
}

/** Nothing was there to be hit, or what was done did not bite: it counts as no fault. */
export class NotDone extends Error {
  override readonly name = 'NotDone';
}

/** What a fault turned out to be; times are µs of the monotonic clock. */
export interface Facts {
  /** What it hit, for the history and the report. */
  target?: string;
  /** When it began, where it had to be prepared first. */
  at?: number;
  /** When it was over, where that was before now. */
  healed?: number;
  /** More of it, in words for the report. */
  note?: string;
}

/** One fault that is on. */
export interface Injection extends Facts {
  /**
   * Puts everything back, and resolves when that is done; the facts may have become others then.
   * @throws NotDone
   */
  heal(): Promise<void>;
}

export interface Fault {
  kind: string;
  part: Part;
  /** How often it comes, relative to others. */
  weight: number;
  /** Least and most time between injection and the beginning of its end, in ms. */
  lasts: readonly [number, number];
  /** About how long it takes to prepare before it begins, in ms. */
  preparesMs?: number;
  /** So long that others would mostly fall into it: every so many times it is alone. */
  aloneEvery?: number;
  /** What must hold meanwhile, in words for the report. */
  promise: string;
  /** Why it cannot be had here. */
  impossible?(stage: Stage): string | undefined;
  /** `seat` is the one the schedule chose, for faults that hit one gateway. */
  inject(stage: Stage, draw: Draw): Promise<Injection>;
}

/** What the schedule drew for one fault. */
export interface Draw {
  seat: Seat;
  lastsMs: number;
  /** Numbers in [0, 1), the same for the same seed. */
  next: () => number;
}

/** The one the schedule chose, or where few are there, as it has just been started, the one with the most clients. */
export function peopled({ world }: Stage, { seat }: Draw): Seat {
  const people = (one: Seat) => one.clients.connections;
  const most = world.seats.reduce((best, one) => (people(one) > people(best) ? one : best), seat);
  return people(seat) >= people(most) / 4 ? seat : most;
}
