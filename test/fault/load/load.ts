import { setTimeout as sleep } from 'node:timers/promises';
import { pick, random } from '../../support/random.js';
import { monotonic } from '../history.js';
import { ClientFaults } from './client-faults.js';
import type { LoadConfig } from './config.js';
import { type Crew, clientsOf, makeCrew } from './crew.js';
import { Ledger } from './ledger.js';

/** One line of a load process, about once a second. Counts are of its whole life. */
export interface Status {
  /** µs of the monotonic clock. */
  t: number;
  name: string;
  phase: 'running' | 'quieting' | 'quiet';
  /** Attempts, and how they ended. */
  sent: number;
  acked: number;
  nacked: number;
  unknown: number;
  /** Events and runs that were asked for and have no answer yet. */
  open: number;
  received: number;
  /** Readers of rooms that are joined, of all; those of storms are among them until they leave. */
  joined: number;
  readers: number;
  /** The most events that any reader is behind of what is known to be in its room. */
  behind: number;
  /** Runs that were made here; `runsEnded` and `runsOpen` of these, as the readers here saw it. */
  asked: number;
  runsEnded: number;
  runsOpen: number;
  leaks: number;
  /** Writes under old fences that were refused, as they should be. */
  fenced: number;
  /** All workers here, and how many runs they have in hand. */
  workers: string[];
  inHand: number;
  rssMb: number;
}

/** Clients pump and look at what waits too long this often, in ms. Also how much later than its event a `recv` may be written. */
const BEAT_MS = 20;
/** What a slow moment leaves to be made up for, in s of the rate. */
const DEBT_S = 0.25;

/** A number of things to do each second, evenly. What was missed for long is forgotten. */
class Pace {
  readonly #perSecond: number;
  #due = 0;
  #at = Date.now();

  constructor(perSecond: number) {
    this.#perSecond = perSecond;
  }

  /** How many are due at `now`; {@link done} tells how many were done. */
  due(now: number): number {
    this.#due += (this.#perSecond * (now - this.#at)) / 1000;
    this.#due = Math.min(this.#due, Math.max(1, this.#perSecond * DEBT_S));
    this.#at = now;
    return Math.floor(this.#due);
  }

  done(count: number): void {
    this.#due -= count;
  }
}

/** All clients of one process, from their start to the end of their history. */
export class Load {
  readonly #config: LoadConfig;
  readonly #ledger: Ledger;
  readonly #crew: Crew;
  readonly #random: () => number;
  readonly faults: ClientFaults;
  readonly #publishes: Pace;
  readonly #runs: Pace;
  readonly #beat: NodeJS.Timeout;
  #phase: Status['phase'] = 'running';
  #turn = 0;

  private constructor(config: LoadConfig, ledger: Ledger, crew: Crew, next: () => number) {
    this.#config = config;
    this.#ledger = ledger;
    this.#crew = crew;
    this.#random = next;
    this.faults = new ClientFaults(config, ledger, crew, next);
    this.#publishes = new Pace(config.ratePerSecond);
    this.#runs = new Pace(config.runsPerSecond);
    for (const client of clientsOf(crew)) client.open?.();
    this.#beat = setInterval(() => this.#pulse(), BEAT_MS);
  }

  /** Every client is on its way; none needs to be connected yet. */
  static async start(config: LoadConfig): Promise<Load> {
    const next = random(config.seed);
    const ledger = new Ledger(config);
    return new Load(config, ledger, await makeCrew(config, ledger, next), next);
  }

  status(): Status {
    const { counts, openRuns } = this.#ledger;
    const all = [...this.#crew.readers, ...this.#crew.streamReaders, ...this.faults.stormReaders];
    const workers = [...this.#crew.workers, ...this.#crew.otherWorkers];
    let behind = 0;
    let joined = 0;
    for (const reader of all) {
      behind = Math.max(behind, reader.behind);
      if (reader.joined) joined++;
    }
    return {
      t: monotonic(),
      name: this.#config.name,
      phase: this.#phase,
      ...counts,
      open: this.#unresolved(),
      joined,
      readers: all.length,
      behind,
      runsOpen: openRuns.size,
      workers: workers.map(({ name }) => name),
      inHand: workers.reduce((sum, { busy }) => sum + busy, 0),
      rssMb: Math.round(process.memoryUsage.rss() / 1048576),
    };
  }

  /** Asks for nothing new. Resolves when everything has its answer and every run its end, or after `patienceMs`. */
  async quiet(patienceMs: number): Promise<void> {
    this.#phase = 'quieting';
    const deadline = Date.now() + patienceMs;
    const busy = () =>
      this.#unresolved() > 0 || this.#ledger.openRuns.size > 0 || this.#crew.runStreams.some((one) => one.busy);
    while (busy() && Date.now() < deadline) await sleep(50);
    this.#phase = 'quiet';
  }

  /** Closes every client; the history is in its file when it resolves. */
  async stop(): Promise<void> {
    clearInterval(this.#beat);
    this.faults.end();
    for (const client of clientsOf(this.#crew)) client.close();
    await this.#ledger.close();
  }

  #unresolved(): number {
    const { publishers, httpPublishers, askers } = this.#crew;
    return [...publishers, ...httpPublishers, ...askers].reduce((sum, { unresolved }) => sum + unresolved, 0);
  }

  #pulse(): void {
    const now = Date.now();
    this.#ledger.standstill.beat(monotonic());
    const running = this.#phase === 'running';
    this.#publish(running ? this.#publishes.due(now) : 0);
    const { publishers, readers, streamReaders, askers, workers } = this.#crew;
    for (let due = running && askers.length > 0 ? this.#runs.due(now) : 0; due > 0; due--) {
      pick(askers, this.#random).ask();
      this.#runs.done(1);
    }
    for (const client of [...publishers, ...readers, ...askers, ...workers]) client.tick(now);
    for (const stream of streamReaders) stream.tick();
  }

  /** Deals `fresh` new events out to the publishers; each sends what it has to send again first. */
  #publish(fresh: number): void {
    const all = [...this.#crew.publishers, ...this.#crew.httpPublishers];
    const share = Math.max(1, Math.ceil(fresh / Math.max(1, all.length)));
    let left = fresh;
    for (let i = 0; i < all.length; i++) {
      left -= all[(this.#turn + i) % all.length]?.pump(Math.min(share, left)) ?? 0;
    }
    this.#turn += share === 1 ? Math.max(1, fresh) : 1;
    this.#publishes.done(fresh - left);
  }
}
