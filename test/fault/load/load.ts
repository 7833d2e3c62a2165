import { pick, random } from '../../support/random.js';
import { type LoadConfig, type LoadTenant, mint } from './config.js';
import { HttpPublisher } from './http-publisher.js';
import { Ledger } from './ledger.js';
import { Publisher } from './publisher.js';
import { Reader } from './reader.js';
import { RunViews } from './run-views.js';
import { StreamReader } from './stream-reader.js';

/** One line of a load process, about once a second. Counts are of attempts and of its whole life. */
export interface Status {
  /** µs of the monotonic clock. */
  t: number;
  name: string;
  phase: 'running' | 'quieting' | 'quiet';
  sent: number;
  acked: number;
  nacked: number;
  unknown: number;
  /** Events sent that have no answer yet. */
  open: number;
  received: number;
  /** Readers that are joined, of all. */
  joined: number;
  readers: number;
  /** The most events that any reader is behind of what is known to be in its room. */
  behind: number;
  asked: number;
  runsEnded: number;
  runsOpen: number;
  leaks: number;
  zombies: number;
  rssMb: number;
}

/** Clients pump and look at what waits too long this often, in ms. */
const BEAT_MS = 20;
/** A user has so many clients of one process at most; a gateway limits the sessions of a user. */
const CLIENTS_PER_USER = 10;
/** Publishes that a slow moment may leave to be made up for, in s of the rate. */
const DEBT_S = 0.25;
const DUPLICATE_MS = 15_000;

/** All clients of one process and what can be done to them. */
export class Load {
  readonly ledger: Ledger;
  readonly #config: LoadConfig;
  readonly #random: () => number;
  readonly #tokens = new Map<string, Promise<string>>();
  readonly #publishers: Publisher[] = [];
  readonly #httpPublishers: HttpPublisher[] = [];
  readonly #readers: Reader[] = [];
  readonly #streams: StreamReader[] = [];
  #phase: Status['phase'] = 'running';
  #debt = 0;
  #turn = 0;
  #beatAt = 0;
  #beat: NodeJS.Timeout | undefined;
  #made = 0;

  constructor(config: LoadConfig) {
    this.#config = config;
    this.#random = random(config.seed);
    this.ledger = new Ledger(config);
  }

  /** Makes all clients and opens them; does not wait for any to be connected. */
  async start(): Promise<void> {
    const { name, gateways, answerMs, payloadBytes, window } = this.#config;
    const base = () => ({ gateways, answerMs, random: random(Math.floor(this.#random() * 2 ** 32)) });
    for (const { at, tenant, room } of this.#places(this.#config.publishers)) {
      const token = await this.#token(tenant);
      const one = { ...base(), name: `${name}-p${at}`, tenant, room, token, payloadBytes, window };
      this.#publishers.push(new Publisher(this.ledger, one));
    }
    for (const { at, tenant, room } of this.#places(this.#config.httpPublishers)) {
      const token = at % 2 === 0 ? tenant.serverKey : await this.#token(tenant);
      const one = { ...base(), name: `${name}-h${at}`, tenant, room, token, payloadBytes, window: 1 };
      this.#httpPublishers.push(new HttpPublisher(this.ledger, one));
    }
    for (const { at, tenant, room } of this.#places(this.#config.readers)) {
      const from = at % 4 === 3 ? 'latest' : 'start';
      const one = { ...base(), name: `${name}-r${at}`, tenant, room, token: await this.#token(tenant) };
      this.#readers.push(new Reader(this.ledger, { ...one, from }));
    }
    for (const { at, tenant, room } of this.#places(this.#config.viewers)) {
      const one = { ...base(), name: `${name}-v${at}`, tenant, room, token: await this.#token(tenant) };
      const views = new RunViews(this.ledger, one.name);
      this.#readers.push(new Reader(this.ledger, { ...one, from: 'latest', views }));
    }
    for (const { at, tenant, room } of this.#places(this.#config.streamReaders)) {
      const one = { ...base(), name: `${name}-s${at}`, tenant, room, token: await this.#token(tenant) };
      this.#streams.push(new StreamReader(this.ledger, { ...one, from: 'start' }));
    }
    for (const client of [...this.#publishers, ...this.#readers, ...this.#streams]) client.open();
    this.#beatAt = Date.now();
    this.#beat = setInterval(() => this.#pulse(), BEAT_MS);
  }

  status(): Status {
    const { counts, openRuns } = this.ledger;
    const all = [...this.#readers, ...this.#streams];
    let behind = 0;
    let joined = 0;
    for (const reader of all) {
      behind = Math.max(behind, reader.behind);
      if (reader.joined) joined++;
    }
    return {
      t: Number(process.hrtime.bigint() / 1000n),
      name: this.#config.name,
      phase: this.#phase,
      ...counts,
      open: this.#unresolved(),
      joined,
      readers: all.length,
      behind,
      runsOpen: openRuns.size,
      rssMb: Math.round(process.memoryUsage.rss() / 1048576),
    };
  }

  /** Sends nothing new. Resolves when all that was sent has its answer, or after `patienceMs`. */
  async quiet(patienceMs: number): Promise<void> {
    this.#phase = 'quieting';
    const deadline = Date.now() + patienceMs;
    while (this.#unresolved() > 0 && Date.now() < deadline) await new Promise((wait) => setTimeout(wait, 50));
    this.#phase = 'quiet';
  }

  /** Closes every client; the history is in its file when it resolves. */
  async stop(): Promise<void> {
    clearInterval(this.#beat);
    for (const client of [...this.#publishers, ...this.#httpPublishers, ...this.#readers, ...this.#streams]) {
      client.close();
    }
    await this.ledger.close();
  }

  /** The TCP connections of `n` clients are gone at once. */
  cut(n: number): void {
    for (const client of this.#some([...this.#links(), ...this.#streams], n)) client.cut();
  }

  /** `n` clients fall silent without closing, and come back on new connections. */
  halfOpen(n: number): void {
    for (const link of this.#some(this.#links(), n)) link.halfOpen();
  }

  /** `n` readers read nothing for `ms`. */
  slow(n: number, ms: number): void {
    const readers = [...this.#readers.map(({ link }) => link), ...this.#streams];
    for (const client of this.#some(readers, n)) client.slow(ms);
  }

  /** `n` readers get a second tab of the same user from the same position, for a while. */
  duplicate(n: number): void {
    for (const { position, options } of this.#some(this.#readers, n)) {
      if (!position) continue;
      const name = `${this.#config.name}-d${this.#made++}`;
      const views = options.views ? { views: new RunViews(this.ledger, name) } : {};
      const tab = new Reader(this.ledger, { ...options, name, from: position, ...views });
      this.#readers.push(tab);
      tab.open();
      const end = () => {
        tab.leave();
        this.#readers.splice(this.#readers.indexOf(tab), 1);
      };
      setTimeout(end, DUPLICATE_MS).unref();
    }
  }

  /** The next event of one publisher is one that Postgres refuses. */
  poison(): void {
    for (const publisher of this.#some(this.#publishers, 1)) publisher.poison();
  }

  #links() {
    return [...this.#publishers, ...this.#readers].map(({ link }) => link);
  }

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

  #unresolved(): number {
    return [...this.#publishers, ...this.#httpPublishers].reduce((sum, { unresolved }) => sum + unresolved, 0);
  }

  /** `count` clients, dealt out to tenants first and then to their rooms. */
  *#places(count: number): Generator<{ at: number; tenant: LoadTenant; room: string }> {
    const { tenants } = this.#config;
    for (let at = 0; at < count; at++) {
      const tenant = tenants[at % tenants.length];
      const room = tenant?.rooms[Math.floor(at / tenants.length) % tenant.rooms.length];
      if (tenant && room !== undefined) yield { at, tenant, room };
    }
  }

  #token(tenant: LoadTenant): Promise<string> {
    const user = `${this.#config.name}-user-${Math.floor(this.#made++ / CLIENTS_PER_USER)}`;
    const key = `${tenant.id} ${user}`;
    const token = this.#tokens.get(key) ?? mint(tenant, user);
    this.#tokens.set(key, token);
    return token;
  }

  #pulse(): void {
    const now = Date.now();
    const { ratePerSecond } = this.#config;
    this.#debt += (ratePerSecond * (now - this.#beatAt)) / 1000;
    this.#debt = Math.min(this.#debt, Math.max(1, ratePerSecond * DEBT_S));
    this.#beatAt = now;
    const all = [...this.#publishers, ...this.#httpPublishers];
    let fresh = this.#phase === 'running' ? Math.floor(this.#debt) : 0;
    const share = Math.max(1, Math.ceil(fresh / Math.max(1, all.length)));
    for (let i = 0; i < all.length; i++) {
      const publisher = all[(this.#turn + i) % all.length];
      const sent = publisher?.pump(Math.min(share, fresh)) ?? 0;
      fresh -= sent;
      this.#debt -= sent;
    }
    this.#turn++;
    for (const client of [...this.#publishers, ...this.#readers]) client.tick(now);
    for (const stream of this.#streams) stream.tick();
  }
}
