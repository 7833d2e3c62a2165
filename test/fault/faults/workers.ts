import { setTimeout as sleep } from 'node:timers/promises';
import { monotonic } from '../history.js';
import { type Fault, type Injection, NotDone, type Stage } from './fault.js';

/** Longer than a worker's lease, so that its run belongs to another when it wakes, in ms. */
const FROZEN_MS = 18_000;
/** How long a process that woke may take to write, at whatever gateway lets it in, in ms. */
const AWAKE_MS = 10_000;
const LOOK_MS = 100;

/** @throws NotDone where no worker has a run in hand. */
async function atWork({ workers }: Stage, next: () => number) {
  const found = await workers.atWork(next);
  if (!found) throw new NotDone('no worker had a run in hand');
  return { ...found, target: found.status.workers.join(' ') };
}

/** Signals to processes of workers. All workers of the process are hit, those with a run in hand and the others. */
export const workerFaults: Fault[] = [
  {
    kind: 'worker-kill',
    part: 'workers',
    weight: 2,
    lasts: [0, 0],
    promise: "A dead worker's run goes on or ends in 20 s (RUN2).",
    async inject(stage, { next }): Promise<Injection> {
      const { process, status, target } = await atWork(stage, next);
      const at = monotonic();
      await stage.workers.kill(process);
      // It is over at once: nothing that is promised waits for the process in its place.
      return { target, at, healed: at, note: `runs in hand: ${status.inHand}`, heal: () => stage.workers.start() };
    },
  },
  {
    kind: 'worker-zombie',
    part: 'workers',
    weight: 1,
    lasts: [FROZEN_MS, FROZEN_MS],
    aloneEvery: 2,
    promise: 'A worker that wakes after its lease writes nothing (RUN2).',
    async inject(stage, { next }): Promise<Injection> {
      const { process, status, target } = await atWork(stage, next);
      const at = monotonic();
      process.signal('SIGSTOP');
      const injection: Injection = {
        target,
        at,
        async heal() {
          process.signal('SIGCONT');
          injection.healed = monotonic();
          let fenced = 0;
          for (const until = Date.now() + AWAKE_MS; fenced === 0 && Date.now() < until; await sleep(LOOK_MS)) {
            fenced = (await process.ask()).fenced - status.fenced;
          }
          if (fenced === 0) throw new NotDone('nothing that a worker wrote when it woke was refused as fenced');
          injection.note = `writes refused as fenced: ${fenced}`;
        },
      };
      return injection;
    },
  },
];
