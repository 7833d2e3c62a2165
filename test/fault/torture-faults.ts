import { setTimeout as sleep } from 'node:timers/promises';
import { random } from '../support/random.js';
import { type Facts, type Fault, NotDone, type Part, type Stage } from './faults/fault.js';
import { type HistoryWriter, monotonic } from './history.js';
import { laneOf, type Planned } from './torture-schedule.js';
import type { Seat } from './world-seat.js';

/** A fault that was on. Times are µs of the monotonic clock. */
export interface Injected {
  id: number;
  kind: string;
  part: Part;
  target: string;
  at: number;
  healed: number;
  /** More of it, in words. */
  note?: string;
}

/** How a run of faults went. */
export interface FaultRun {
  /** Kinds that are on now. */
  readonly active: readonly string[];
  /** Faults that began and were healed, in the order they were healed. */
  readonly done: readonly Injected[];
  /** Faults that could not be done or undone, with the reason. */
  readonly failures: readonly string[];
  /** Faults that found nothing to hit or did not bite, with the reason; they are not among those done. */
  readonly notDone: readonly string[];
  /** Resolves once all of the schedule was injected and healed. */
  finished: Promise<void>;
  /** Begins no more, and heals what is on. */
  stop(): void;
}

/**
 * Injects a schedule from now on. A fault whose part is still taken, because putting it back took longer than planned,
 * waits for it: the order within a part stays.
 */
export function runFaults(
  schedule: readonly Planned[],
  faults: readonly Fault[],
  stage: Stage,
  history: HistoryWriter,
): FaultRun {
  const began = monotonic();
  const lanes = new Map<string, Promise<void>>();
  /** Gateways that are not whole; one always is. */
  const down = new Set<Promise<void>>();
  const active: string[] = [];
  const failures: string[] = [];
  const notDone: string[] = [];
  const done: Injected[] = [];
  const stopping = new AbortController();

  const injectAndHeal = async ({ id, kind, lastsMs, seed }: Planned, fault: Fault, seat: Seat) => {
    active.push(kind);
    let facts: Facts = { at: monotonic() };
    let counts = true;
    try {
      const injection = await fault.inject(stage, { seat, lastsMs, next: random(seed) });
      await sleep(lastsMs, undefined, { signal: stopping.signal }).catch(() => undefined);
      facts = { ...facts, ...injection };
      await injection.heal();
      facts = { ...facts, ...injection };
    } catch (error) {
      const words = `${id} ${kind}: ${error instanceof Error ? error.message : error}`;
      counts = !(error instanceof NotDone);
      (counts ? failures : notDone).push(words);
    }
    active.splice(active.indexOf(kind), 1);
    if (!counts) return;
    const { at = monotonic(), healed = monotonic(), target = seat.name, note } = facts;
    history.write(['fault', at, id, kind, target]);
    history.write(['heal', healed, id]);
    done.push({ id, kind, part: fault.part, target, at, healed, ...(note === undefined ? {} : { note }) });
  };

  const one = async (planned: Planned, fault: Fault) => {
    const seat = stage.world.seats[planned.seat];
    const ofGateway = fault.part === 'gateway';
    while (ofGateway && down.size >= stage.world.seats.length - 1) await Promise.race(down);
    if (!seat || stopping.signal.aborted) return;
    const work = injectAndHeal(planned, fault, seat);
    if (ofGateway) down.add(work);
    await work;
    down.delete(work);
  };

  const conduct = async () => {
    for (const planned of schedule) {
      const waitMs = planned.atMs - (monotonic() - began) / 1000;
      if (waitMs > 0) await sleep(waitMs, undefined, { signal: stopping.signal }).catch(() => undefined);
      if (stopping.signal.aborted) return;
      const fault = faults.find(({ kind }) => kind === planned.kind);
      if (!fault) continue;
      const lane = laneOf(fault.part, planned.seat);
      lanes.set(
        lane,
        (lanes.get(lane) ?? Promise.resolve()).then(() => one(planned, fault)),
      );
    }
  };
  const finish = async () => {
    await conduct();
    await Promise.all(lanes.values());
  };

  return {
    active,
    failures,
    notDone,
    done,
    finished: finish(),
    stop: () => stopping.abort(),
  };
}
