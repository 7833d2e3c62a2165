import type { Socket } from 'socket.io-client';
import { pick } from '../../support/random.js';
import { monotonic } from '../history.js';
import { CLIENTS_PER_USER, type LoadConfig, type LoadTenant, mint } from './config.js';
import type { Ledger } from './ledger.js';
import { type Answer, Link } from './link.js';
import type { Position } from './reader.js';

/** What became of a storm. Times in ms. */
export interface StormReport {
  storm: number;
  /** Until all were joined at first. */
  openedMs: number;
  /** From the moment all were dropped until all were joined again, from their positions. */
  rejoinedMs: number;
  /** Joined again within the patience. */
  rejoined: number;
  /** Sockets that were given another number than the next one; each is in the history. */
  faults: number;
}

/** Sockets opened in one go while the storm gathers. */
const AT_ONCE = 250;
const GATHER_MS = 60_000;
const PATIENCE_MS = 60_000;

/**
 * Many readers that lose their connections in one moment. What they are given is not written down, only counted by number: a
 * reader that is given another event than the next one is written with where it stood.
 */
export class Storm {
  readonly #ledger: Ledger;
  readonly #config: LoadConfig;
  readonly #random: () => number;
  readonly #clients: StormClient[] = [];
  #faults = 0;

  constructor(ledger: Ledger, config: LoadConfig, random: () => number) {
    this.#ledger = ledger;
    this.#config = config;
    this.#random = random;
  }

  /** Gathers `count` sockets, drops them, and waits until they are back. Never rejects. */
  async blow(count: number): Promise<StormReport> {
    const began = Date.now();
    await this.#gather(count);
    await this.#allJoined(GATHER_MS);
    const dropped = Date.now();
    const openedMs = dropped - began;
    for (const client of this.#clients) client.link.cut();
    await this.#allJoined(PATIENCE_MS);
    const rejoinedMs = Date.now() - dropped;
    const rejoined = this.#clients.filter(({ joined }) => joined).length;
    this.end();
    return { storm: count, openedMs, rejoinedMs, rejoined, faults: this.#faults };
  }

  end(): void {
    for (const { link } of this.#clients) link.close();
  }

  async #gather(count: number): Promise<void> {
    const { tenants, name } = this.#config;
    let token = '';
    for (let at = 0; at < count; at++) {
      const turn = Math.floor(at / CLIENTS_PER_USER);
      const tenant = tenants[turn % tenants.length];
      if (!tenant) return;
      if (at % CLIENTS_PER_USER === 0) token = await mint(tenant, `${name}-storm-${turn}`);
      const fault = () => this.#faults++;
      const client = new StormClient(this.#ledger, `${name}-w${at}`, tenant, token, this.#config, this.#random, fault);
      this.#clients.push(client);
      client.link.open();
      if (at % AT_ONCE === AT_ONCE - 1) await new Promise((wait) => setTimeout(wait, 100));
    }
  }

  async #allJoined(patienceMs: number): Promise<void> {
    const deadline = Date.now() + patienceMs;
    while (this.#clients.some(({ joined }) => !joined) && Date.now() < deadline) {
      await new Promise((wait) => setTimeout(wait, 20));
    }
  }
}

/** One reader of a storm: as lean as it can be. */
class StormClient {
  joined = false;
  readonly link: Link;
  readonly #ledger: Ledger;
  readonly #name: string;
  readonly #tenant: LoadTenant;
  readonly #room: string;
  readonly #fault: () => void;
  #gateway = '';
  #position: Position | undefined;

  constructor(
    ledger: Ledger,
    name: string,
    tenant: LoadTenant,
    token: string,
    config: LoadConfig,
    random: () => number,
    fault: () => void,
  ) {
    this.#ledger = ledger;
    this.#name = name;
    this.#tenant = tenant;
    this.#room = pick(tenant.rooms, random);
    this.#fault = fault;
    this.link = new Link({
      gateways: config.gateways,
      random,
      auth: { token },
      raw: ledger.searchFor(tenant.id, name, 'storm'),
      up: (socket, gateway) => this.#join(socket, gateway),
      down: () => {
        this.joined = false;
      },
    });
  }

  #join(socket: Socket, gateway: string): void {
    this.#gateway = gateway;
    const from = this.#position ?? 'latest';
    socket.emit('room.join', { room: this.#room, from }, (answer: Answer) => {
      if (!answer.ok) return this.link.lose(answer.error.code);
      this.joined = true;
      this.#position = (answer as unknown as { position: Position }).position;
    });
    socket.on('room.resync', (push: { position: Position }) => {
      this.#position = push.position;
    });
    socket.on('event', ({ epoch, seq, mid }: Position & { mid: string }) => this.#take(epoch, seq, mid));
  }

  #take(epoch: string, seq: number, mid: string): void {
    const before = this.#position;
    this.#position = { epoch, seq };
    if (before?.epoch === epoch && seq === before.seq + 1) return;
    this.#fault();
    const at = before ?? { epoch, seq: 0 };
    const t = monotonic();
    const { id } = this.#tenant;
    this.#ledger.write(['join', t, this.#name, id, this.#room, this.#gateway, 'latest', at.epoch, at.seq]);
    this.#ledger.write(['recv', t, this.#name, epoch, seq, [mid]]);
    this.#ledger.write(['gone', t, this.#name, 'left']);
  }
}
