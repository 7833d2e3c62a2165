import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { shuffled } from '../support/random.js';
import { type LoadOptions, NOBODY } from './load/config.js';
import { type Load, type LoadStatus, startLoad } from './world-load.js';

/** How long is waited for a run in hand, in ms. */
const WORK_MS = 8000;
const LOOK_MS = 20;

/** Load processes that hold workers only, and their histories ahead of what they do: SIGKILL and SIGSTOP hit workers and nobody else. */
export interface WorkerProcesses {
  /** Those that are not killed. */
  readonly running: readonly Load[];
  /** Files of all there ever were. */
  readonly histories: readonly string[];
  /** One with a run in hand at this moment, as soon as there is one; `next` draws which. */
  atWork(next: () => number): Promise<{ process: Load; status: LoadStatus } | undefined>;
  /** Kills one with all it holds. @throws Error where it had died already. */
  kill(process: Load): Promise<void>;
  /** Starts one more, under a name that no other has had: whoever it was before is gone for good. */
  start(): Promise<void>;
  end(): Promise<void>;
}

/** What one of them does; `seed` is the first one's. */
export type WorkerShare = Omit<LoadOptions, 'name' | 'history'> & { seed: number };

/** Starts `count`; their files are in `directory`. */
export async function startWorkerProcesses(
  count: number,
  directory: string,
  share: WorkerShare,
): Promise<WorkerProcesses> {
  const running: Load[] = [];
  const histories: string[] = [];
  let made = 0;
  const start = async () => {
    const seed = share.seed + made++;
    const name = `work${made}`;
    const history = join(directory, `${name}.jsonl`);
    running.push(await startLoad({ ...NOBODY, ratePerSecond: 0, writeAhead: true, ...share, name, history, seed }));
    histories.push(history);
  };
  const end = async () => {
    await Promise.all(running.map((process) => process.end()));
  };
  const started = await Promise.allSettled(Array.from({ length: count }, start));
  for (const one of started) {
    if (one.status === 'fulfilled') continue;
    await end();
    throw one.reason;
  }
  return {
    running,
    histories,
    async atWork(next) {
      const order = shuffled(running, next);
      for (const deadline = Date.now() + WORK_MS; Date.now() < deadline; await sleep(LOOK_MS)) {
        for (const process of order) {
          const status = await process.ask();
          if (status.inHand > 0) return { process, status };
        }
      }
      return undefined;
    },
    async kill(process) {
      running.splice(running.indexOf(process), 1);
      await process.kill();
      if (process.died !== undefined) throw new Error(process.died);
    },
    start,
    end,
  };
}
