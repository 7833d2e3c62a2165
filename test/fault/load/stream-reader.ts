import { pick } from '../../support/random.js';
import type { Asked } from '../history.js';
import { EventSource, type SourceEvent } from './event-source.js';
import type { Ledger } from './ledger.js';
import { askedFor, type Position, type ReaderOptions, Received } from './reader.js';

/** Of the text of an event, how it begins; saves parsing the rest. */
const EVENT = /^\{"room":"[^"]*","epoch":"([^"]*)","seq":([0-9]+),"mid":"([^"]*)"/;
const PAUSE_MS = 150;

type StreamReaderOptions = Omit<ReaderOptions, 'from' | 'views'> & { from: 'start' | 'latest' };

/** Reads a room as server-sent events, whatever happens, always with the `Last-Event-ID` it last saw. */
export class StreamReader {
  readonly #options: StreamReaderOptions;
  readonly #received: Received;
  readonly #search: (text: string) => void;
  #source: EventSource | undefined;
  #gateway = '';
  #lastId: string | undefined;
  #asked: Asked = 'start';
  #joined = false;
  #closed = false;
  #failures = 0;

  constructor(ledger: Ledger, options: StreamReaderOptions) {
    const { name, tenant, room } = options;
    this.#options = options;
    this.#received = new Received(ledger, name, tenant.id, room);
    this.#search = ledger.searchFor(tenant.id, name, 'sse');
  }

  get name(): string {
    return this.#options.name;
  }

  get behind(): number {
    return this.#received.behind;
  }

  get joined(): boolean {
    return this.#joined;
  }

  open(): void {
    if (this.#closed) return;
    const { gateways, random, room, token, from } = this.#options;
    const gateway = pick(gateways, random);
    this.#gateway = gateway.name;
    const after = this.#lastId === undefined ? `?after=${from}` : '';
    this.#asked = this.#lastId === undefined ? from : askedFor(positionOf(this.#lastId));
    this.#source = new EventSource({
      url: `${gateway.url}/v1/rooms/${room}/stream${after}`,
      token,
      lastId: this.#lastId,
      opened: () => {
        this.#failures = 0;
      },
      event: (event) => this.#take(event),
      raw: this.#search,
      ended: (why, status) => this.#ended(why, status),
    });
  }

  tick(): void {
    this.#received.flush();
  }

  cut(): void {
    this.#source?.cut();
  }

  close(): void {
    this.#closed = true;
    this.#joined = false;
    this.#received.flush();
    this.#source?.close();
  }

  #take({ id, event, data }: SourceEvent): void {
    if (id !== undefined) this.#lastId = id;
    // The first block of a stream is an id alone: where it begins.
    if (!this.#joined && id !== undefined && data === undefined) {
      this.#joined = true;
      this.#received.joined(this.#gateway, this.#asked, positionOf(id));
    } else if (event === 'resync' && data !== undefined) {
      const { reason, position } = JSON.parse(data) as { reason: string; position: Position };
      this.#received.resynced(reason, position);
    } else if (event === 'event' && data !== undefined) {
      const [, epoch = '', seq = '', mid = ''] = EVENT.exec(data) ?? [];
      this.#received.event(epoch, Number(seq), mid);
    }
  }

  #ended(why: string, status: number): void {
    if (this.#joined) this.#received.gone(status === 200 || status === 0 ? why : `status ${status}`);
    this.#joined = false;
    const pause = Math.min(2500, PAUSE_MS * 2 ** Math.min(this.#failures++, 5)) * (0.5 + this.#options.random());
    setTimeout(() => this.open(), pause);
  }
}

function positionOf(id: string): Position {
  const colon = id.lastIndexOf(':');
  return { epoch: id.slice(0, colon), seq: Number(id.slice(colon + 1)) };
}
