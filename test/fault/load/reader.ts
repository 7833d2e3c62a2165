import type { Socket } from 'socket.io-client';
import { type Asked, monotonic } from '../history.js';
import type { LoadConfig, LoadTenant } from './config.js';
import type { Ledger } from './ledger.js';
import { type Answer, Link } from './link.js';
import type { RunViews } from './run-views.js';

export interface Position {
  epoch: string;
  seq: number;
}

/** How it stands in the history that a reader asks for this. */
export const askedFor = (from: 'start' | 'latest' | Position): Asked =>
  typeof from === 'string' ? from : `${from.epoch}:${from.seq}`;

/** What a reader tells the history of its events, however it came by them: from now on it means to be in. */
export class Received {
  /** After the last event handled; undefined before the first join. */
  position: Position | undefined;
  joins = 0;
  readonly #ledger: Ledger;
  readonly #name: string;
  readonly #tenant: string;
  readonly #room: string;
  #batch: string[] = [];
  #batchAt = 0;
  #first: Position = { epoch: '', seq: 0 };

  constructor(ledger: Ledger, name: string, tenant: string, room: string, position?: Position) {
    this.#ledger = ledger;
    this.#name = name;
    this.#tenant = tenant;
    this.#room = room;
    this.position = position;
    ledger.write(['open', monotonic(), name, tenant, room]);
  }

  joined(gateway: string, asked: Asked, position: Position): void {
    this.flush();
    this.joins++;
    this.position = position;
    this.#ledger.write([
      'join',
      monotonic(),
      this.#name,
      this.#tenant,
      this.#room,
      gateway,
      asked,
      position.epoch,
      position.seq,
    ]);
  }

  resynced(reason: string, position: Position): void {
    this.flush();
    this.position = position;
    this.#ledger.write(['resync', monotonic(), this.#name, reason, position.epoch, position.seq]);
  }

  /** A run of consecutive numbers is written as one line, with the time of its last event; any fault of order begins another. */
  event(epoch: string, seq: number, mid: string): void {
    const next = this.#first.seq + this.#batch.length;
    if (this.#batch.length > 0 && (epoch !== this.#first.epoch || seq !== next)) this.flush();
    if (this.#batch.length === 0) this.#first = { epoch, seq };
    this.#batch.push(mid);
    this.#batchAt = monotonic();
    this.position = { epoch, seq };
    this.#ledger.counts.received++;
    this.#ledger.sawHead(this.#tenant, this.#room, epoch, seq);
  }

  gone(why: string): void {
    this.flush();
    this.#ledger.write(['gone', monotonic(), this.#name, why]);
  }

  /** Called at least every 100 ms, so that an event's line is at most so much later than it. */
  flush(): void {
    if (this.#batch.length === 0) return;
    const { epoch, seq } = this.#first;
    this.#ledger.write(['recv', this.#batchAt, this.#name, epoch, seq, this.#batch]);
    this.#batch = [];
  }

  /** Events known to be in the room that it has not handled. */
  get behind(): number {
    if (!this.position) return 0;
    const { epoch, seq } = this.position;
    return Math.max(0, this.#ledger.head(this.#tenant, this.#room, epoch) - seq);
  }
}

export interface ReaderOptions {
  name: string;
  tenant: LoadTenant;
  room: string;
  token: string;
  gateways: LoadConfig['gateways'];
  random: () => number;
  answerMs: number;
  /** Where the first join asks to be put. */
  from: 'start' | 'latest' | Position;
  /** Told of everything about runs in the room. */
  views?: RunViews;
}

interface Joined {
  position: Position;
  resync?: { reason: string };
  head: number;
  runs: Parameters<RunViews['joined']>[0];
}

/** Reads a room over a bare socket, whatever happens to it, always from the position of the last event it handled. */
export class Reader {
  readonly #options: ReaderOptions;
  readonly #ledger: Ledger;
  readonly #link: Link;
  readonly #received: Received;
  #askedAt = 0;
  #joined = false;

  constructor(ledger: Ledger, options: ReaderOptions) {
    const { name, tenant, room, from } = options;
    this.#options = options;
    this.#ledger = ledger;
    this.#received = new Received(ledger, name, tenant.id, room, typeof from === 'string' ? undefined : from);
    this.#link = new Link({
      gateways: options.gateways,
      random: options.random,
      auth: { token: options.token },
      raw: ledger.searchFor(tenant.id, name, 'socket'),
      up: (socket, gateway) => this.#join(socket, gateway),
      down: (why) => {
        this.#askedAt = 0;
        if (this.#joined) this.#received.gone(why);
        this.#joined = false;
      },
    });
  }

  get link(): Link {
    return this.#link;
  }

  get name(): string {
    return this.#options.name;
  }

  get options(): ReaderOptions {
    return this.#options;
  }

  get position(): Position | undefined {
    return this.#received.position;
  }

  get joined(): boolean {
    return this.#joined;
  }

  /** How often it has joined. */
  get joins(): number {
    return this.#received.joins;
  }

  /** Reads nothing until the function it gives back is called. */
  pause(): () => void {
    return this.#link.pause();
  }

  get behind(): number {
    return this.#received.behind;
  }

  open(): void {
    this.#link.open();
  }

  /** `now` is ms as of `Date.now()`. */
  tick(now: number): void {
    this.#received.flush();
    if (this.#askedAt > 0 && now - this.#askedAt > this.#options.answerMs) this.#link.lose('no answer to the join');
  }

  /** Leaves of its own will. */
  leave(): void {
    this.#received.gone('left');
    this.close();
  }

  close(): void {
    this.#joined = false;
    this.#received.flush();
    this.#link.close();
  }

  #join(socket: Socket, gateway: string): void {
    const { room, from, views } = this.#options;
    const wanted = this.#received.position ?? from;
    this.#askedAt = Date.now();
    socket.emit('room.join', { room, from: wanted }, (answer: Answer) => {
      if (this.#link.socket !== socket) return;
      this.#askedAt = 0;
      if (!answer.ok) return this.#link.lose(`join: ${answer.error.code}`);
      const { position, resync, runs } = answer as unknown as Joined;
      this.#joined = true;
      this.#received.joined(gateway, askedFor(wanted), position);
      if (resync) this.#received.resynced(resync.reason, position);
      views?.joined(runs);
    });
    socket.on('event', (event: { epoch: string; seq: number; mid: string; type: string; data: unknown }) => {
      this.#received.event(event.epoch, event.seq, event.mid);
      if (event.type.startsWith('run.')) this.#runEvent(event.type, event.data);
    });
    socket.on('room.resync', (push: { reason: string; position: Position }) => {
      this.#received.resynced(push.reason, push.position);
      views?.joined([]);
    });
    if (!views) return;
    socket.on('run.state', views.state);
    socket.on('run.chunk', views.chunk);
    socket.on('run.reset', views.reset);
  }

  #runEvent(type: string, data: unknown): void {
    const { run } = data as { run?: { id: string } };
    if (type !== 'run.created' && run) this.#ledger.ended(run.id);
    this.#options.views?.event(type, data);
  }
}
