import { setTimeout as sleep } from 'node:timers/promises';
import { pick, random } from '../../support/random.js';
import { monotonic } from '../history.js';
import { Balancer } from './balancer.js';
import { CLIENTS_PER_USER, type LoadConfig, mint } from './config.js';
import type { Ledger } from './ledger.js';
import { StormReader } from './storm-reader.js';

/** The sockets of a storm have lost their connections. */
export interface StormCut {
  storm: number;
  /** Sockets that were joined and were cut. */
  cut: number;
  /** µs of the monotonic clock. */
  at: number;
  /** How long they took to gather, in ms. */
  openedMs: number;
}

/** What became of a storm. */
export interface StormReport extends StormCut {
  /** From the cut until each had joined again from its position, in ms. */
  rejoinedMs: number;
  /** Joined again within the patience. */
  rejoined: number;
}

export interface StormOptions {
  /** Unique in the history; its readers are `<name>n0` … */
  name: string;
  /** Sockets. */
  count: number;
  /** Publishes `n` events to each of its rooms. */
  publish(n: number): void;
  /** Called at the cut. */
  dropped(cut: StormCut): void;
}

/** A storm is not to begin as one: so many sockets open in a beat, and so many are on their way at most. */
const BEAT_MS = 20;
const OPENED_PER_BEAT = 14;
const OPENING_MAX = 150;
const LEAVING_PER_BEAT = 150;
/** How long a storm waits for its last sockets, as other faults may be on: to be there all at once, then to be back, to have everything. In ms. */
const GATHER_MS = 40_000;
const PATIENCE_MS = 60_000;
/** Events of each room that are missed by all. */
const MISSED = 12;
/** Events of readers are written at least this often, see {@link Received}. */
const FLUSH_MS = 100;

/**
 * Thousands of readers that lose their connections in one moment, miss events, and come back at once to whichever gateway.
 * They are written down as every other reader is.
 */
export class Storm {
  readonly #ledger: Ledger;
  readonly #config: LoadConfig;
  readonly #options: StormOptions;
  readonly #random: () => number;
  readonly #balancer: Balancer;
  #readers: StormReader[] = [];
  readonly #flushing: NodeJS.Timeout;
  /** Of the user whose readers are being opened. */
  #token = '';
  #over = false;

  constructor(ledger: Ledger, config: LoadConfig, next: () => number, options: StormOptions) {
    this.#ledger = ledger;
    this.#config = config;
    this.#options = options;
    this.#random = random(Math.floor(next() * 2 ** 32));
    this.#balancer = new Balancer(config.gateways, this.#random);
    this.#flushing = setInterval(() => {
      const now = Date.now();
      for (const reader of this.#readers) reader.tick(now);
    }, FLUSH_MS);
  }

  /** Those that have not left. */
  get readers(): readonly StormReader[] {
    return this.#readers;
  }

  /** Gathers its sockets, cuts them all, and waits until they are back. Never rejects. {@link disperse} it then. */
  async blow(): Promise<StormReport> {
    const { count, publish, dropped } = this.#options;
    const began = Date.now();
    await this.#gather();
    const at = monotonic();
    const gone = this.#readers.filter(({ joined }) => joined);
    for (const reader of gone) reader.cut();
    const cut = { storm: count, cut: gone.length, at, openedMs: Date.now() - began };
    publish(MISSED);
    dropped(cut);
    await this.#until(() => gone.every(({ returned }) => returned));
    const rejoinedMs = Math.round((monotonic() - at) / 1000);
    return { ...cut, rejoinedMs, rejoined: gone.filter(({ returned }) => returned).length };
  }

  /**
   * Each reader leaves once it has been given everything, and one more event than when this began. Those that have not in the
   * end are gone without having left, so that the checker finds what they lack.
   */
  async disperse(): Promise<void> {
    this.#options.publish(1);
    await sleep(500);
    await this.#until(() => {
      const ready = this.#readers.filter(({ joined, behind }) => joined && behind === 0);
      const leaving = new Set(ready.slice(0, LEAVING_PER_BEAT));
      for (const reader of leaving) reader.leave();
      this.#readers = this.#readers.filter((reader) => !leaving.has(reader));
      return this.#readers.length === 0;
    });
    this.end();
  }

  /** Closes what is open at once. */
  end(): void {
    this.#over = true;
    clearInterval(this.#flushing);
    for (const reader of this.#readers) reader.close();
  }

  async #gather(): Promise<void> {
    const { count } = this.#options;
    await this.#until(async () => {
      const { length } = this.#readers;
      const opening = this.#readers.reduce((sum, { joined }) => sum + (joined ? 0 : 1), 0);
      const more = Math.min(OPENED_PER_BEAT, OPENING_MAX - opening, count - length);
      for (let n = 0; n < more; n++) await this.#add(length + n);
      return length === count && opening === 0;
    }, GATHER_MS);
  }

  async #add(n: number): Promise<void> {
    const { tenants, answerMs, name: process } = this.#config;
    const { name } = this.#options;
    // Those who share a user follow one another.
    const user = Math.floor(n / CLIENTS_PER_USER);
    const tenant = tenants[user % tenants.length];
    if (!tenant) return;
    if (n % CLIENTS_PER_USER === 0) this.#token = await mint(tenant, `${process}-storm-${user}`);
    const room = pick(tenant.rooms, this.#random);
    const options = { tenant, room, token: this.#token, balancer: this.#balancer, answerMs, random: this.#random };
    const reader = new StormReader(this.#ledger, { name: `${name}n${n}`, ...options });
    this.#readers.push(reader);
    reader.open();
  }

  /** Asks each beat, until it is so, the patience is at its end, or all is over. */
  async #until(so: () => boolean | Promise<boolean>, patienceMs = PATIENCE_MS): Promise<void> {
    const deadline = Date.now() + patienceMs;
    while (!this.#over && !(await so()) && Date.now() < deadline) await sleep(BEAT_MS);
  }
}
