import { pick } from '../../support/random.js';
import { monotonic, stormName } from '../history.js';
import type { LoadConfig } from './config.js';
import type { Crew } from './crew.js';
import { type FloodReport, flood } from './flood.js';
import type { Ledger } from './ledger.js';
import { Reader } from './reader.js';
import { RunViews } from './run-views.js';
import { Storm, type StormCut, type StormReport } from './storm.js';
import type { StormReader } from './storm-reader.js';
import { SocketWorker } from './worker.js';

const DUPLICATE_MS = 15_000;
/** Fault ids of load processes: apart from those of the injector, which count from 1. */
const FAULT_IDS = 2 ** 40;

/** What clients, workers and tenants do to a world, on command. */
export class ClientFaults {
  readonly #config: LoadConfig;
  readonly #ledger: Ledger;
  readonly #crew: Crew;
  readonly #random: () => number;
  readonly #storms = new Set<Storm>();
  #made = 0;

  constructor(config: LoadConfig, ledger: Ledger, crew: Crew, random: () => number) {
    this.#config = config;
    this.#ledger = ledger;
    this.#crew = crew;
    this.#random = random;
  }

  /** The TCP connections of `n` clients of any kind are gone at once. */
  cut(n: number): void {
    const { streamReaders, runStreams } = this.#crew;
    for (const client of this.#some([...this.#links(), ...streamReaders, ...runStreams], n)) client.cut();
  }

  /** `n` clients fall silent without closing, and come back on new connections while the old ones hang. */
  halfOpen(n: number): void {
    for (const link of this.#some(this.#links(), n)) link.halfOpen();
  }

  /** `n` readers read nothing for `ms`. */
  slow(n: number, ms: number): void {
    const { readers, streamReaders, runStreams } = this.#crew;
    const all = [...readers.map(({ link }) => link), ...streamReaders, ...runStreams];
    for (const client of this.#some(all, n)) client.slow(ms);
  }

  /** `n` readers get a second tab of the same user from the same position, for 15 s. */
  duplicate(n: number): void {
    const { readers } = this.#crew;
    for (const { position, options } of this.#some(readers, n)) {
      if (!position) continue;
      const name = `${this.#config.name}-d${this.#made++}`;
      const views = options.views ? { views: new RunViews(this.#ledger, name) } : {};
      const tab = new Reader(this.#ledger, { ...options, name, from: position, ...views });
      readers.push(tab);
      tab.open();
      const end = () => {
        tab.leave();
        readers.splice(readers.indexOf(tab), 1);
      };
      setTimeout(end, DUPLICATE_MS).unref();
    }
  }

  /** One publisher sends, among others, an event that Postgres refuses; see `POISON_SQL`. */
  poison(): void {
    for (const publisher of this.#some(this.#crew.publishers, 1)) publisher.poison();
  }

  /** A worker, if possible one with runs in hand, is gone for good; another takes its place. It is written as a fault of its own. */
  workerKill(): void {
    const worker = this.#aWorker();
    if (!worker) return;
    const { workers } = this.#crew;
    this.#ledger.write([
      'fault',
      monotonic(),
      FAULT_IDS + Math.floor(this.#random() * FAULT_IDS),
      'worker-kill',
      worker.name,
    ]);
    worker.kill();
    const next = new SocketWorker(this.#ledger, {
      ...worker.options,
      name: `${this.#config.name}-k${100 + this.#made++}`,
    });
    workers.splice(workers.indexOf(worker), 1, next);
    next.open();
  }

  /** A worker, if possible one with runs in hand, is silent for `ms` and then goes on as if nothing had been. */
  workerStop(ms: number): void {
    this.#aWorker()?.link.silence(ms);
  }

  /** A second connection acts with the claim of a worker. */
  async twoWorkers(): Promise<void> {
    await this.#aWorker()?.twice();
  }

  /** `n` more readers come, are cut all at once, and come back; `dropped` is called at the cut. They leave after this has resolved. */
  async storm(n: number, dropped: (cut: StormCut) => void): Promise<StormReport> {
    const publish = (events: number) => {
      for (const publisher of this.#crew.publishers) publisher.pump(events);
    };
    const name = stormName(this.#config.name, this.#made++);
    const storm = new Storm(this.#ledger, this.#config, this.#random, { name, count: n, publish, dropped });
    this.#storms.add(storm);
    const report = await storm.blow();
    void storm.disperse().finally(() => this.#storms.delete(storm));
    return report;
  }

  get stormReaders(): StormReader[] {
    return [...this.#storms].flatMap(({ readers }) => readers);
  }

  /** @returns `undefined` where there is no such tenant. */
  async flood(id: string, ms: number): Promise<FloodReport | undefined> {
    const tenant = this.#config.tenants.find((one) => one.id === id);
    return tenant && flood(this.#ledger, this.#config, tenant, ms, this.#random);
  }

  end(): void {
    for (const storm of this.#storms) storm.end();
  }

  #aWorker(): SocketWorker | undefined {
    const { workers } = this.#crew;
    const busy = workers.filter((worker) => worker.busy > 0 && worker.link.socket);
    const choice = busy.length > 0 ? busy : workers;
    return choice.length > 0 ? pick(choice, this.#random) : undefined;
  }

  #links() {
    const { publishers, readers, askers, workers } = this.#crew;
    return [...publishers, ...readers, ...askers, ...workers].map(({ link }) => link);
  }

  /** `n` of them, each once. */
  #some<T>(items: readonly T[], n: number): T[] {
    const left = [...items];
    const taken: T[] = [];
    while (taken.length < n && left.length > 0) {
      const one = pick(left, this.#random);
      taken.push(one);
      left.splice(left.indexOf(one), 1);
    }
    return taken;
  }
}
