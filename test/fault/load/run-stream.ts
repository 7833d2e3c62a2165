import type { Part } from '../../../src/protocol/parts.js';
import { pick } from '../../support/random.js';
import { monotonic } from '../history.js';
import { OutputDigest } from '../output-digest.js';
import type { LoadConfig, LoadTenant } from './config.js';
import { EventSource, type SourceEvent } from './event-source.js';
import type { Ledger } from './ledger.js';

export interface RunStreamOptions {
  name: string;
  tenant: LoadTenant;
  token: string;
  gateways: LoadConfig['gateways'];
  random: () => number;
}

const PAUSE_MS = 200;
/** A run that nobody ends for so long is given up, so that others are read. */
const PATIENCE_MS = 180_000;

/** Reads one run after another as server-sent events, to its `[DONE]`, with the `Last-Event-ID` it last saw. */
export class RunStream {
  readonly #options: RunStreamOptions;
  readonly #ledger: Ledger;
  readonly #search: (text: string) => void;
  #source: EventSource | undefined;
  #run: string | undefined;
  #since = 0;
  #lastId: string | undefined;
  #attempt = 0;
  #next = 0;
  #digest = new OutputDigest();
  #lastType = '';
  #closed = false;

  constructor(ledger: Ledger, options: RunStreamOptions) {
    this.#ledger = ledger;
    this.#options = options;
    this.#search = ledger.searchFor(options.tenant.id, options.name, 'run sse');
  }

  get name(): string {
    return this.#options.name;
  }

  get busy(): boolean {
    return this.#run !== undefined;
  }

  get tenant(): string {
    return this.#options.tenant.id;
  }

  /** Reads this run to its end. */
  read(run: string): void {
    this.#run = run;
    this.#since = Date.now();
    this.#lastId = undefined;
    this.#begin(0);
    this.#connect();
  }

  cut(): void {
    this.#source?.cut();
  }

  close(): void {
    this.#closed = true;
    this.#source?.close();
  }

  #begin(attempt: number): void {
    this.#attempt = attempt;
    this.#next = 0;
    this.#digest = new OutputDigest();
    this.#lastType = '';
  }

  #connect(): void {
    const { gateways, random, token } = this.#options;
    if (this.#closed || this.#run === undefined) return;
    this.#source = new EventSource({
      url: `${pick(gateways, random).url}/v1/runs/${this.#run}/stream`,
      token,
      lastId: this.#lastId,
      opened: () => undefined,
      event: (event) => this.#take(event),
      raw: this.#search,
      ended: (_why, status) => {
        const lost = status >= 400 && status < 500 && status !== 429;
        if (lost || Date.now() - this.#since > PATIENCE_MS) this.#run = undefined;
        else setTimeout(() => this.#connect(), PAUSE_MS * (0.5 + random()));
      },
    });
  }

  #take({ id, data }: SourceEvent): void {
    const run = this.#run;
    if (data === undefined || run === undefined) return;
    if (data === '[DONE]') {
      this.#done(run);
      return;
    }
    const part = JSON.parse(data) as Part;
    if (part.type === 'data-tutti-reset') {
      const { attempt } = part.data as { attempt: number };
      this.#begin(attempt);
      this.#ledger.write(['reset', monotonic(), this.#options.name, run, attempt]);
      return;
    }
    this.#lastType = part.type;
    if (id === undefined) return;
    this.#lastId = id;
    const [attempt = 0, n = 0] = id.split(':').map(Number);
    this.#attempt = attempt;
    this.#next = n + 1;
    const digest = this.#digest.add(part).toString();
    this.#ledger.write(['chunk', monotonic(), this.#options.name, run, this.#attempt, this.#next, digest]);
  }

  #done(run: string): void {
    const state = this.#lastType === 'abort' ? 'cancelled' : this.#lastType === 'error' ? 'failed' : 'completed';
    this.#ledger.write(['end', monotonic(), this.#options.name, run, state, this.#digest.toString()]);
    this.#run = undefined;
    this.#source?.close();
  }
}
