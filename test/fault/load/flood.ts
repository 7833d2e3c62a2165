import { setTimeout as sleep } from 'node:timers/promises';
import type { Socket } from 'socket.io-client';
import { monotonic } from '../history.js';
import { type LoadConfig, type LoadTenant, mint } from './config.js';
import type { Ledger } from './ledger.js';
import { type Answer, Link } from './link.js';
import { type Acknowledged, recordRefusal } from './publisher.js';

/** What became of a flood. */
export interface FloodReport {
  flood: string;
  sent: number;
  acked: number;
  refused: Record<string, number>;
}

/** Commands under way on each of the sockets: bounds memory here, not what the gateway gets. */
const WINDOW = 200;
const SOCKETS = 4;

/**
 * A tenant publishes as fast as it can for `ms`, in a room of its own, and cares for no refusal: nothing is sent again. All of it
 * is in the history. Never rejects.
 */
export async function flood(
  ledger: Ledger,
  config: LoadConfig,
  tenant: LoadTenant,
  ms: number,
  random: () => number,
): Promise<FloodReport> {
  const report: FloodReport = { flood: tenant.id, sent: 0, acked: 0, refused: {} };
  const hoses: Hose[] = [];
  for (let at = 0; at < SOCKETS; at++) {
    const name = `${config.name}-f${floods++}`;
    hoses.push(new Hose(ledger, config, tenant, name, await mint(tenant, name), random, report));
  }
  await sleep(ms);
  for (const hose of hoses) hose.close();
  return report;
}

let floods = 0;

/** One socket of a flood. */
class Hose {
  readonly #ledger: Ledger;
  readonly #tenant: LoadTenant;
  readonly #name: string;
  readonly #room: string;
  readonly #data: { c: string; f: string };
  readonly #report: FloodReport;
  readonly #link: Link;
  readonly #open = new Set<string>();
  #connection = 0;
  #next = 0;

  constructor(
    ledger: Ledger,
    config: LoadConfig,
    tenant: LoadTenant,
    name: string,
    token: string,
    random: () => number,
    report: FloodReport,
  ) {
    this.#ledger = ledger;
    this.#tenant = tenant;
    this.#name = name;
    this.#room = `flood-${config.name}`;
    this.#data = { c: tenant.canary, f: 'x'.repeat(config.payloadBytes) };
    this.#report = report;
    this.#link = new Link({
      gateways: config.gateways,
      random,
      auth: { token },
      raw: ledger.searchFor(tenant.id, name, 'flood'),
      up: (socket) => {
        this.#connection++;
        for (let i = 0; i < WINDOW; i++) this.#send(socket);
      },
      down: (why) => this.#lost(why),
    });
    this.#link.open();
  }

  close(): void {
    this.#link.close();
  }

  #send(socket: Socket): void {
    if (this.#link.socket !== socket) return;
    const mid = `${this.#name}-${this.#next++}`;
    const { id } = this.#tenant;
    this.#report.sent++;
    this.#open.add(mid);
    this.#ledger.counts.sent++;
    this.#ledger.write(['send', monotonic(), this.#name, id, this.#room, mid, `${this.#name}/${this.#connection}`]);
    const payload = { room: this.#room, type: 'load.flood', data: this.#data, mid };
    socket.emit('event.publish', payload, (answer: Answer) => {
      if (!this.#open.delete(mid)) return;
      this.#answered(mid, answer);
      // In a turn of its own: this process has other clients, which a refusal at once would starve.
      setImmediate(() => this.#send(socket));
    });
  }

  #answered(mid: string, answer: Answer): void {
    if (answer.ok) {
      const { position, duplicate } = answer as unknown as Acknowledged;
      this.#report.acked++;
      this.#ledger.counts.acked++;
      this.#ledger.write(['ack', monotonic(), this.#name, mid, position.epoch, position.seq, duplicate]);
      return;
    }
    const { code } = answer.error;
    this.#report.refused[code] = (this.#report.refused[code] ?? 0) + 1;
    recordRefusal(this.#ledger, this.#name, mid, answer.error);
  }

  #lost(why: string): void {
    for (const mid of this.#open) {
      this.#ledger.counts.unknown++;
      this.#ledger.write(['unknown', monotonic(), this.#name, mid, why]);
    }
    this.#open.clear();
  }
}
