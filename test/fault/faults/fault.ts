import type { World } from '../world.js';
import type { Load } from '../world-load.js';
import type { Seat } from '../world-seat.js';

/** What a fault takes away. Two faults of one part are never on at once; a gateway is a part by itself. */
export type Part = 'gateway' | 'redis' | 'postgres' | 'clients' | 'workers' | 'tenants';

/** What faults work on. */
export interface Stage {
  readonly world: World;
  readonly loads: readonly Load[];
  /** A load process of its own for sockets by the thousand; nothing else is done to its clients. */
  readonly crowd: Load;
  /** `main.js` of the release before; `undefined` where `noPrevious` says why. */
  readonly previous: string | undefined;
  readonly noPrevious: string | undefined;
}

/** One fault that is on. */
export interface Injection {
  /** What it hit, for the history and the report. */
  target: string;
  /** When it began, where it had to be prepared first; µs of the monotonic clock. */
  at?: number;
  /** The load writes it into its history itself, with what it hit. */
  recorded?: boolean;
  /** Puts everything back, and resolves when that is done. */
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
