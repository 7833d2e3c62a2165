import { setTimeout as sleep } from 'node:timers/promises';
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
import type { SocketWorker } from './worker.js';

/** What became of a command, once it is over. */
export interface Outcome {
  /** µs of the monotonic clock. */
  at: number;
  healed: number;
  /** Names of whom it hit. Nobody: it found nobody, or did not bite. */
  hit: string[];
  /** More of it, in words. */
  note?: string;
}

const DUPLICATE_MS = 15_000;
/** How long is waited for a worker with a run in hand, in ms. */
const WORK_MS = 8000;
/** What is said in the room of slow readers, 48 KiB each: more than sockets, proxies and a gateway hold for one of them. */
const SHOUTS = 320;
/** How long a reader that was slow may take to learn that its gateway closed it, in ms. */
const CLOSED_MS = 8000;
const LOOK_MS = 20;

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

  /** The TCP connections of `n` clients of any kind, a reader among them, are gone at once. */
  cut(n: number): Outcome {
    const { streamReaders, runStreams } = this.#crew;
    const readers = [...this.#linked(this.#crew.readers), ...streamReaders.filter(({ joined }) => joined).map(itself)];
    const others = [...this.#others(), ...runStreams.filter(({ busy }) => busy).map(itself)];
    return this.#each(this.#mixed(readers, others, n), ({ line }) => line.cut());
  }

  /** `n` clients, a reader among them, fall silent without closing, and come back on new connections while the old ones hang. */
  halfOpen(n: number): Outcome {
    return this.#each(this.#mixed(this.#linked(this.#crew.readers), this.#others(), n), ({ line }) => line.halfOpen());
  }

  /**
   * `n` readers of one room read nothing for `ms`, while more is said there than a gateway may hold for them. Those are hit that
   * their gateway closed. What is said is not in the log: they are late by what they missed, not by what they were drowned in.
   */
  async slow(n: number, ms: number): Promise<Outcome> {
    const { publishers, readers } = this.#crew;
    const read = (one: { tenant: { id: string }; room: string }) =>
      readers.filter(({ joined, options: { tenant, room } }) => joined && tenant === one.tenant && room === one.room);
    const [publisher] = this.#some(
      publishers.filter(({ link, options }) => link.socket && read(options).length > 0),
      1,
    );
    const slow = publisher ? this.#some(read(publisher.options), n) : [];
    const at = monotonic();
    const resumes = slow.map((reader) => reader.pause());
    const until = Date.now() + ms;
    // Whoever publishes there says it; one whose connection goes meanwhile leaves the rest to the others.
    const speakers = publishers.filter(
      ({ options }) => options.tenant === publisher?.options.tenant && options.room === publisher.options.room,
    );
    for (let left = SHOUTS; left > 0 && Date.now() < until; await sleep(LOOK_MS)) {
      const [speaker] = this.#some(
        speakers.filter(({ link }) => link.socket),
        1,
      );
      left -= (await speaker?.shout(left, until)) ?? 0;
    }
    await sleep(Math.max(0, until - Date.now()));
    // Until it reads again none of them can know that it was closed.
    const joins = slow.map((reader) => reader.joins);
    const healed = monotonic();
    for (const resume of resumes) resume();
    const closed = () => slow.filter(({ joined, joins: now }, i) => !joined || now > (joins[i] ?? 0));
    await this.#until(() => closed().length === slow.length, CLOSED_MS);
    const hit = closed().map(({ name }) => name);
    return { at, healed, hit, note: `${hit.length} of ${slow.length} slow readers closed` };
  }

  /** `n` readers get a second tab of the same user from the same position, for 15 s. */
  duplicate(n: number): Outcome {
    const { readers } = this.#crew;
    const victims = this.#some(
      readers.filter(({ position }) => position !== undefined),
      n,
    );
    return this.#each(victims, ({ position, options }) => {
      if (!position) return;
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
    });
  }

  /** One publisher sends, among others, an event that Postgres refuses; see `POISON_SQL`. */
  poison(): Outcome {
    return this.#each(this.#some(this.#crew.publishers, 1), (publisher) => publisher.poison());
  }

  /** A second connection acts with the claim of a worker. */
  async twoWorkers(): Promise<Outcome> {
    for (const deadline = Date.now() + WORK_MS; Date.now() < deadline; await sleep(LOOK_MS)) {
      const worker = await this.#workerAtWork();
      const at = monotonic();
      if (await worker?.twice()) return { at, healed: monotonic(), hit: worker ? [worker.name] : [] };
    }
    return this.#each([], () => undefined);
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

  /** A tenant floods; it is hit where it was refused anything as past its rate. */
  async flood(id: string, ms: number): Promise<Outcome & Partial<FloodReport>> {
    const tenant = this.#config.tenants.find((one) => one.id === id);
    if (!tenant) return this.#each([], () => undefined);
    const at = monotonic();
    const report = await flood(this.#ledger, this.#config, tenant, ms, this.#random);
    const { rate_limited = 0, overloaded = 0 } = report.refused;
    const refused = rate_limited + overloaded;
    const note = `${refused} of ${report.sent} refused`;
    return { at, healed: monotonic(), hit: refused > 0 ? [id] : [], note, ...report };
  }

  end(): void {
    for (const storm of this.#storms) storm.end();
  }

  #each<T extends { name: string }>(victims: readonly T[], act: (victim: T) => void): Outcome {
    const at = monotonic();
    for (const victim of victims) act(victim);
    return { at, healed: at, hit: victims.map(({ name }) => name) };
  }

  /** One that has a run in hand and is connected, as soon as there is one. */
  async #workerAtWork(): Promise<SocketWorker | undefined> {
    const busy = () => this.#crew.workers.filter((worker) => worker.busy > 0 && worker.link.socket);
    await this.#until(() => busy().length > 0, WORK_MS);
    return this.#some(busy(), 1)[0];
  }

  async #until(so: () => boolean, ms: number): Promise<void> {
    for (const deadline = Date.now() + ms; !so() && Date.now() < deadline; ) await sleep(LOOK_MS);
  }

  #others() {
    const { publishers, askers, workers } = this.#crew;
    return this.#linked([...publishers, ...askers, ...workers]);
  }

  #linked<T extends { name: string; link: Reader['link'] }>(clients: readonly T[]) {
    return clients.filter(({ link }) => link.socket).map(({ name, link }) => ({ name, line: link }));
  }

  /** `n` of all, the first of `readers`. */
  #mixed<R, O>(readers: readonly R[], others: readonly O[], n: number): (R | O)[] {
    const [first] = this.#some(readers, 1);
    if (first === undefined) return this.#some(others, n);
    return [first, ...this.#some([...readers.filter((one) => one !== first), ...others], n - 1)];
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

const itself = <T extends { name: string }>(client: T) => ({ name: client.name, line: client });
