import type { Announcement, Bus } from '../../src/core/bus.js';
import { systemClock } from '../../src/core/clock.js';
import type { RoomOutput } from '../../src/core/feeds.js';
import { type RoomKey, roomKey } from '../../src/core/keys.js';
import type { Principal } from '../../src/core/principal.js';
import type { RunStore } from '../../src/core/run-store.js';
import { type RunLimits, Runs } from '../../src/core/runs.js';
import { type Database, openDatabase } from '../../src/db/database.js';
import { migrate } from '../../src/db/migrate.js';
import { createRunStore } from '../../src/db/run-store.js';
import { Fold, foldParts } from '../../src/protocol/fold.js';
import type { EventRecord, Frame } from '../../src/protocol/frames.js';
import type { Part } from '../../src/protocol/parts.js';
import type { JsonText } from '../../src/protocol/primitives.js';
import type { Pushes, PushName } from '../../src/protocol/pushes.js';
import type { LiveRun, Run } from '../../src/protocol/runs.js';
import { freshDatabase } from '../support/postgres.js';
import { recordLog, recordMetrics } from '../support/telemetry.js';

export const limits: RunLimits = {
  leaseMs: 2000,
  commitMs: 50,
  segmentBytes: 16 * 1024,
  uncommittedMaxBytes: 64 * 1024,
  outputMaxBytes: 512 * 1024,
  queueTtlMs: 60_000,
  maxAttempts: 3,
  durationMaxMs: 60_000,
  sweepMs: 100,
  livePerTenant: 1000,
  livePerRoom: 1000,
  claimsWaitingMax: 1000,
  uncommittedTotalBytes: 16 * 1024 * 1024,
};

export const worker: Principal = { kind: 'worker', id: 'w', tenant: 'acme', capabilities: {} };
export const operatorWorker: Principal = { ...worker, id: 'o', tenant: null };
export const user: Principal = {
  kind: 'user',
  id: 'alice',
  tenant: 'acme',
  capabilities: { '*': ['join', 'run.create', 'run.cancel'] },
};
export const room = roomKey('acme', 'lobby');
export const input = '{"prompt":"hi"}' as JsonText;
export const delta = (text: string): Part => ({ type: 'text-delta', id: 't', delta: text });
export const sleep = (ms: number) => new Promise<void>((wait) => setTimeout(wait, ms));

/** A database with the tenants `acme` and `beta`, and its run store. */
export async function stage(): Promise<{ database: Database; store: RunStore; end(): Promise<void> }> {
  const { url, drop } = await freshDatabase();
  const database = await openDatabase({ url, poolSize: 6, appRole: 'tutti_app' });
  await migrate(database);
  await database.withTenants(
    '*',
    (tx) => tx`insert into tutti.tenants (tenant_id, name) values ('acme', 'Acme'), ('beta', 'Beta')`,
  );
  return {
    database,
    store: createRunStore(database),
    async end() {
      await database.close();
      await drop();
    },
  };
}

/** Numbers from 0 to 1 that a seed decides. */
export function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Buses that lose, repeat and delay as a seed decides. */
export class UnreliableExchange {
  readonly #members = new Map<object, (room: RoomKey, message: Announcement) => void>();
  constructor(
    readonly chance: () => number,
    readonly faults: { lose: number; repeat: number; delayMs: number },
  ) {}

  bus(): Bus & { cut(): void } {
    const member = {};
    const subscribed = new Map<RoomKey, number>();
    let listener: (room: RoomKey, message: Announcement) => void = () => {};
    this.#members.set(member, (key, message) => {
      if (subscribed.has(key)) listener(key, message);
    });
    const { chance, faults } = this;
    return {
      announce: (key, message) => {
        for (const [other, deliver] of this.#members) {
          if (other === member || !this.#members.has(member)) continue;
          const times = chance() < faults.lose ? 0 : chance() < faults.repeat ? 2 : 1;
          for (let i = 0; i < times; i++) setTimeout(() => deliver(key, message), chance() * faults.delayMs);
        }
      },
      subscribe: async (key) => void subscribed.set(key, (subscribed.get(key) ?? 0) + 1),
      unsubscribe: (key) => {
        const left = (subscribed.get(key) ?? 0) - 1;
        if (left > 0) subscribed.set(key, left);
        else subscribed.delete(key);
      },
      onMessage: (given) => {
        listener = given;
      },
      onReconnect: () => {},
      connected: () => true,
      close: async () => {},
      cut: () => void this.#members.delete(member),
    };
  }
}

/** A reader that believes only its pushes, and complains of what a reader must never see. */
export class Reader {
  readonly runs = new Map<
    string,
    { attempt: number; next: number; parts: Part[]; state: Run['state']; length?: number }
  >();
  readonly states: string[] = [];
  readonly events: EventRecord[] = [];
  /** Called with the text of a run after each change. */
  watch: (run: string, text: string) => void = () => {};

  begin(snapshot: LiveRun[]): void {
    for (const { id, attempt, next, output, state } of snapshot) {
      this.runs.set(id, { attempt, next, parts: [...output], state });
    }
  }

  take(frame: Frame): void {
    const [name, payload] = JSON.parse(frame.slice(2)) as [PushName, never];
    if (name === 'run.state') {
      const push = payload as Pushes['run.state'];
      this.states.push(push.state);
      const run = this.runs.get(push.run) ?? { attempt: push.attempt, next: 0, parts: [], state: push.state };
      if (run.attempt !== push.attempt) throw new Error(`state of attempt ${push.attempt} without a reset`);
      if (['completed', 'failed', 'cancelled', 'expired'].includes(run.state)) throw new Error('state after the end');
      if (push.length !== undefined && push.length !== run.next)
        throw new Error(`ended at ${run.next} of ${push.length}`);
      this.runs.set(push.run, {
        ...run,
        state: push.state,
        ...(push.length === undefined ? {} : { length: push.length }),
      });
    } else if (name === 'run.reset') {
      const push = payload as Pushes['run.reset'];
      this.runs.set(push.run, { attempt: push.attempt, next: 0, parts: [], state: 'queued' });
    } else if (name === 'run.chunk') {
      const push = payload as Pushes['run.chunk'];
      const run = this.runs.get(push.run);
      if (!run || run.attempt !== push.attempt) throw new Error(`chunk of attempt ${push.attempt} without a reset`);
      if (push.n !== run.next) throw new Error(`chunk ${push.n} where ${run.next} is due`);
      run.next += push.parts.length;
      run.parts.push(...push.parts);
      this.watch(push.run, textOf(run.parts));
    }
  }

  text(run: string): string {
    return textOf(this.runs.get(run)?.parts ?? []);
  }

  state(run: string): string | undefined {
    return this.runs.get(run)?.state;
  }
}

export const textOf = (parts: readonly Part[]): string => {
  const fold = new Fold();
  fold.addAll(parts);
  return fold
    .parts()
    .map((part) => (part.type === 'text-delta' ? part.delta : ''))
    .join('');
};
export const folded = (parts: Part[]): string => JSON.stringify(foldParts(parts));

/** A gateway without sockets: runs, a bus, and one reader in the lobby. */
export class Gateway {
  readonly runs: Runs;
  readonly reader = new Reader();
  readonly log = recordLog();
  readonly metrics = recordMetrics();
  readonly problems: unknown[] = [];
  #checks: NodeJS.Timeout | undefined;
  #joined = false;

  constructor(
    store: RunStore,
    readonly bus: Bus & { cut?(): void },
    given: Partial<RunLimits> = {},
  ) {
    const rooms: RoomOutput = {
      pushRun: (_, frame) => {
        if (!this.#joined) return;
        try {
          this.reader.take(frame);
        } catch (problem) {
          this.problems.push(problem);
        }
      },
      committed: (_, event) => this.reader.events.push(event),
    };
    this.runs = new Runs({
      store,
      bus,
      rooms,
      metrics: this.metrics,
      log: this.log,
      clock: systemClock,
      limits: { ...limits, ...given },
    });
    bus.onMessage((key, message) => this.runs.receive(key, message));
    this.runs.start();
    this.#checks = setInterval(() => void this.runs.check().catch(() => {}), 500);
  }

  async join(): Promise<this> {
    await this.bus.subscribe(room);
    await this.runs.openRoom(room);
    this.#joined = true;
    this.reader.begin(this.live());
    return this;
  }

  /** What a reader is told that joins the lobby now, or another room. */
  live(key: RoomKey = room): LiveRun[] {
    const { runs, rest } = this.runs.join(key, Number.POSITIVE_INFINITY);
    rest.close();
    return runs;
  }

  /** As if the process was killed: nothing more leaves it. */
  kill(): void {
    this.bus.cut?.();
    this.#joined = false;
    clearInterval(this.#checks);
    this.runs.close();
  }
}
