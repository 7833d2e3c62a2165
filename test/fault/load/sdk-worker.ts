import { setTimeout as sleep } from 'node:timers/promises';
import { type RunningWorker, runWorker } from '../../../src/worker/index.js';
import { pick } from '../../support/random.js';
import type { Ledger } from './ledger.js';
import { RunWork } from './run-work.js';
import { MODEL, type WorkerOptions } from './worker.js';

const CAPACITY = 2;
const PAUSE_MS = 50;

/** A worker as users write it, with the SDK, at one gateway for good. */
export class SdkWorker {
  readonly #options: WorkerOptions;
  readonly #ledger: Ledger;
  #worker: RunningWorker | undefined;
  #busy = 0;

  constructor(ledger: Ledger, options: WorkerOptions) {
    this.#ledger = ledger;
    this.#options = options;
  }

  get name(): string {
    return this.#options.name;
  }

  /** Runs in hand. */
  get busy(): number {
    return this.#busy;
  }

  open(): void {
    const { gateways, random, tenant, name } = this.#options;
    const [ledger, enter, leave] = [this.#ledger, () => this.#busy++, () => this.#busy--];
    this.#worker = runWorker({
      url: pick(gateways, random).url,
      key: tenant.workerKey,
      models: [MODEL],
      capacity: CAPACITY,
      async *handle(assignment, { signal }) {
        const work = new RunWork(ledger, name, tenant.canary, assignment);
        enter();
        try {
          while (!work.complete && !signal.aborted) {
            const from = work.made;
            work.make(1 + Math.floor(random() * 3));
            yield* work.parts.slice(from, work.made);
            await sleep(PAUSE_MS * (0.5 + random()));
          }
        } finally {
          leave();
        }
      },
    });
  }

  close(): void {
    void this.#worker?.stop(0);
  }
}
