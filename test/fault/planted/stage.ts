import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import postgres from 'postgres';
import { Undo } from '../../e2e/run-stage.js';
import { eventually } from '../../support/eventually.js';
import { type GatewayProcess, startGateway } from '../../support/gateway.js';
import { type CheckOptions, checkHistory, type Verdict } from '../checker/check.js';
import { type Entry, HistoryWriter, monotonic } from '../history.js';
import { type LoadOptions, type LoadTenant, loadConfig, NOBODY } from '../load/config.js';
import { Load } from '../load/load.js';
import { writeTables } from '../world-tables.js';
import { makeTenants } from '../world-tenants.js';
import { type DatabasePlant, type Plant, planted, plantInDatabase } from './plants.js';

/** What is wrong in a small world; nothing in the control. */
export interface Planting {
  plants?: readonly Plant[];
  database?: DatabasePlant;
  /** How long it goes on at least once all is under way, in ms: what has no answer is late only after 5 s. */
  lastsMs?: number;
}

/** One scenario's processes, clients and history files. */
export class Stage {
  readonly undo = new Undo();
  readonly #scratch = mkdtempSync(join(tmpdir(), 'tutti-planted-'));
  readonly #files: string[] = [];
  readonly #loads: Load[] = [];
  readonly #own: HistoryWriter;
  readonly #planting: Planting;
  #faults = 0;

  constructor(planting: Planting) {
    this.#planting = planting;
    this.undo.add(this.#scratch, (path) => rmSync(path, { recursive: true, force: true }));
    this.#own = new HistoryWriter(this.#file('own'));
  }

  /** Tenants in a new database, with rooms of the same name. */
  async tenants(databaseUrl: string, count: number): Promise<LoadTenant[]> {
    const tenants = await makeTenants(databaseUrl, count, 0);
    if (this.#planting.database) await plantInDatabase(databaseUrl, this.#planting.database);
    return tenants.map((tenant) => ({ ...tenant, rooms: ['lobby'] }));
  }

  async gateway(env: Record<string, string>, port?: number): Promise<GatewayProcess> {
    const wrong = planted(this.#planting.plants ?? []);
    const options = { env: { ...env, ...wrong }, ...(port === undefined ? {} : { port }) };
    return this.undo.add(await startGateway(options), (one) => one.stop());
  }

  async load(options: Omit<LoadOptions, 'history'>): Promise<Load> {
    const load = await Load.start(loadConfig({ ...NOBODY, ...options, history: this.#file(options.name) }));
    this.#loads.push(load);
    return load;
  }

  /** What clients of the scenario itself saw. */
  write(entry: Entry): void {
    this.#own.write(entry);
  }

  /** Does what a fault is and what heals it, and writes both down. */
  async fault(
    kind: string,
    target: string,
    inject: () => Promise<unknown>,
    heal: () => Promise<unknown>,
  ): Promise<void> {
    const id = this.#faults++;
    this.#own.write(['fault', monotonic(), id, kind, target]);
    await inject();
    await heal();
    this.#own.write(['heal', monotonic(), id]);
  }

  /** Everything answered and read, as far as it ever will be; then the verdict. */
  async verdict(databaseUrl: string, options: CheckOptions = {}): Promise<Verdict> {
    await Promise.all(this.#loads.map((load) => load.quiet(10_000)));
    const settled = () => this.#loads.every((load) => load.status().behind === 0 && load.status().runsOpen === 0);
    const wrong = this.#planting.plants !== undefined || this.#planting.database !== undefined;
    await eventually('everybody has everything', settled, wrong ? 3000 : 20_000).catch((late: unknown) => {
      if (!wrong) throw late;
    });
    await sleep(100); // what is received is written down in batches
    await Promise.all(this.#loads.splice(0).map((load) => load.stop()));
    const sql = postgres(databaseUrl, { max: 1, onnotice: () => undefined });
    await writeTables(sql, (entry) => this.#own.write(entry));
    await sql.end({ timeout: 1 });
    await this.#own.close();
    return checkHistory(this.#files, options);
  }

  async end(): Promise<void> {
    await Promise.all(this.#loads.splice(0).map((load) => load.stop()));
    await this.undo.all();
  }

  #file(name: string): string {
    const file = join(this.#scratch, `${name}.jsonl`);
    this.#files.push(file);
    return file;
  }
}

/** Worlds at a time: a machine that is busy with more of them answers nobody in time. */
const WORLDS = 3;
let free = WORLDS;
const waiting: (() => void)[] = [];

/** Plays a scenario when its turn comes, and clears away what it left. */
export async function staged(planting: Planting, play: (stage: Stage) => Promise<Verdict>): Promise<Verdict> {
  if (free === 0) await new Promise<void>((next) => waiting.push(next));
  else free -= 1;
  const stage = new Stage(planting);
  try {
    return await play(stage);
  } finally {
    await stage.end();
    const next = waiting.shift();
    if (next) next();
    else free += 1;
  }
}
