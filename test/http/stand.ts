import uWS, { type TemplatedApp, type us_listen_socket } from 'uWebSockets.js';
import { randomUUID } from 'node:crypto';
import { connect, type Socket } from 'node:net';
import { type RoomKey, roomKey } from '../../src/core/keys.js';
import { InFlight } from '../../src/core/limits.js';
import { actorOf, type Principal, requireRight, tenantOfPrincipal } from '../../src/core/principal.js';
import type { Viewer } from '../../src/core/viewer.js';
import { TuttiError } from '../../src/errors.js';
import type { AuthPort, RoomsPort, RunsPort, RunWatcher } from '../../src/http/ports.js';
import { type HttpDeps, type HttpServer, mountHttp } from '../../src/http/server.js';
import { allCapabilities } from '../../src/protocol/capabilities.js';
import { type EventRecord, eventFrame, eventJson } from '../../src/protocol/frames.js';
import type { Part } from '../../src/protocol/parts.js';
import { toJsonText } from '../../src/protocol/primitives.js';
import { isTerminal, type Run } from '../../src/protocol/runs.js';
import { createMetrics, type PrometheusMetrics } from '../../src/telemetry/metrics.js';
import { recordLog } from '../support/telemetry.js';

/*
 * A core in memory, for tests of the edge alone: it keeps the contracts HTTP relies on and nothing else. Tests of
 * what the real core does start a gateway.
 */

const user = (id: string, capabilities: Principal['capabilities']): Principal => ({
  kind: 'user',
  id,
  tenant: 'acme',
  capabilities,
});

/** Bearer values the stand-in knows. */
export const principals: Record<string, Principal> = {
  ann: user('ann', { '*': ['join', 'publish', 'broadcast', 'run.create', 'run.cancel', 'moderate'] }),
  guest: user('guest', { lobby: ['join'] }),
  brief: { ...user('brief', { '*': ['join'] }), expiresAt: Date.now() + 2000 },
  server: { kind: 'server', id: 'k1', tenant: 'acme', capabilities: allCapabilities },
  worker: { kind: 'worker', id: 'k2', tenant: 'acme', capabilities: {} },
};

class StandAuth implements AuthPort {
  bearer(value: string): Promise<Principal> {
    if (value === 'ended') return Promise.reject(new TuttiError('token_expired', 'Ended.'));
    if (value === 'away') return Promise.reject(new TuttiError('log_unavailable', 'Away.', { retryAfterMs: 1500 }));
    if (value === 'broken') return Promise.reject(new Error('secret detail of a fault'));
    const found = principals[value];
    return found ? Promise.resolve(found) : Promise.reject(new TuttiError('unauthenticated', 'Unknown.'));
  }

  mint(): Promise<{ token: string; expiresAt: number }> {
    return Promise.resolve({ token: 'minted', expiresAt: Date.now() + 1000 });
  }
}

export class StandRooms implements RoomsPort {
  readonly events = new Map<RoomKey, EventRecord[]>();
  readonly viewers = new Map<Viewer, RoomKey>();
  publishOut: HttpServer | undefined;

  async join(...[principal, payload, viewer, reply]: Parameters<RoomsPort['join']>): Promise<void> {
    const key = roomKey(requireRight(principal, payload.room, 'join'), payload.room);
    await Promise.resolve();
    const events = this.events.get(key) ?? [];
    const { from = 'latest' } = payload;
    const lost = typeof from === 'object' && from.epoch !== 'e1';
    const seq = from === 'start' || lost ? 0 : from === 'latest' ? events.length : from.seq;
    reply({
      position: { epoch: 'e1', seq },
      resumed: typeof from === 'object' && !lost,
      head: events.length,
      runs: [],
      capabilities: [],
      ...(lost ? { resync: { reason: 'epoch_changed' } } : {}),
    });
    for (const event of events.slice(seq)) {
      viewer.send([eventFrame(event)]);
      if (!(await viewer.drained())) return;
    }
    viewer.follow(key);
    this.viewers.set(viewer, key);
  }

  leaveAll(viewer: Viewer): void {
    const key = this.viewers.get(viewer);
    if (key) viewer.unfollow(key);
    this.viewers.delete(viewer);
  }

  publish(...[principal, payload]: Parameters<RoomsPort['publish']>): ReturnType<RoomsPort['publish']> {
    const { room, type, data, mid = randomUUID() } = payload;
    const key = roomKey(requireRight(principal, room, 'publish'), room);
    const events = this.events.get(key) ?? [];
    this.events.set(key, events);
    const before = events.find((event) => event.mid === mid);
    const by = toJsonText(actorOf(principal));
    const event = before ?? { room, epoch: 'e1', seq: events.length + 1, mid, type, data, by, at: Date.now() };
    if (!before) {
      events.push(event);
      this.publishOut?.publish(key, eventFrame(event));
    }
    return Promise.resolve({
      position: { epoch: 'e1', seq: event.seq },
      mid,
      at: event.at,
      duplicate: before !== undefined,
    });
  }

  history(...[principal, { room }]: Parameters<RoomsPort['history']>): ReturnType<RoomsPort['history']> {
    const events = this.events.get(roomKey(requireRight(principal, room, 'join'), room)) ?? [];
    return Promise.resolve({ events: events.map(eventJson), epoch: 'e1', head: events.length, floor: 0 });
  }

  broadcast(...[principal, { room }]: Parameters<RoomsPort['broadcast']>): void {
    requireRight(principal, room, 'broadcast');
  }

  list(...[principal]: Parameters<RoomsPort['list']>): ReturnType<RoomsPort['list']> {
    tenantOfPrincipal(principal);
    return Promise.resolve({ rooms: [{ room: 'lobby', epoch: 'e1', head: 0, floor: 0, createdAt: 1 }], next: 'lobby' });
  }

  async get(...[principal, room]: Parameters<RoomsPort['get']>): ReturnType<RoomsPort['get']> {
    const { epoch, head, floor } = await this.history(principal, { room });
    if (room === 'nowhere') throw new TuttiError('not_found', 'There is no such room.');
    return { room, epoch, head, floor, createdAt: 1, runs: [] };
  }

  async erase(...[principal, room]: Parameters<RoomsPort['erase']>): Promise<void> {
    this.events.delete(roomKey(requireRight(principal, room, 'moderate'), room));
    await Promise.resolve();
  }
}

/** One run in memory; tests drive it. */
export class StandRuns implements RunsPort {
  readonly runs = new Map<string, Run>();
  readonly parts: Part[] = [];
  readonly pushes: { n: number; count: number }[] = [];
  readonly watchers = new Set<RunWatcher>();
  readonly #cancelled = new Map<string, () => void>();
  fence = 1;
  /** Set to hold every push until it resolves. */
  gate: Promise<void> | undefined;

  add(id: string, state: Run['state'] = 'queued'): Run {
    const initiator = { kind: 'user' as const, id: 'ann' };
    const run: Run = { id, room: 'lobby', model: 'demo', state, attempt: 1, initiator, createdAt: 1 };
    this.runs.set(id, run);
    return run;
  }

  find(id: string): Run {
    const run = this.runs.get(id);
    if (!run) throw new TuttiError('not_found', 'There is no such run.');
    return run;
  }

  end(id: string, state: 'completed' | 'failed' | 'cancelled'): Run {
    const error = state === 'failed' ? { error: { code: 'x', message: 'It broke.' } } : {};
    const run = { ...this.find(id), state, ...error };
    this.runs.set(id, run);
    for (const watcher of this.watchers) watcher.end(run);
    this.watchers.clear();
    return run;
  }

  async create(...[principal, { room, mid }]: Parameters<RunsPort['create']>): ReturnType<RunsPort['create']> {
    requireRight(principal, room, 'run.create');
    const before = mid === undefined ? undefined : this.runs.get(mid);
    await Promise.resolve();
    return { run: before ?? this.add(mid ?? randomUUID()), created: !before };
  }

  async cancel(...[, id]: Parameters<RunsPort['cancel']>): Promise<Run> {
    await Promise.resolve();
    const run = this.end(id, 'cancelled');
    this.#cancelled.get(id)?.();
    return run;
  }

  async get(...[, id]: Parameters<RunsPort['get']>): ReturnType<RunsPort['get']> {
    await Promise.resolve();
    const run = this.find(id);
    return isTerminal(run.state) ? { ...run, output: this.parts } : run;
  }

  async watch(...[, id, from, watcher, signal]: Parameters<RunsPort['watch']>): Promise<void> {
    await Promise.resolve();
    const run = this.find(id);
    const n = from?.attempt === run.attempt ? from.n : 0;
    if (n < this.parts.length) watcher.parts(run.attempt, n, this.parts.slice(n));
    if (isTerminal(run.state)) return watcher.end(run);
    this.watchers.add(watcher);
    await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()));
    this.watchers.delete(watcher);
  }

  async claim(...[, { waitMs }, signal]: Parameters<RunsPort['claim']>): ReturnType<RunsPort['claim']> {
    const queued = [...this.runs.values()].find((run) => run.state === 'queued');
    if (queued) return { run: queued, input: {}, attempt: 1, fence: this.fence, leaseMs: 15_000, committed: 0 };
    await new Promise<void>((resolve) => {
      setTimeout(resolve, waitMs).unref();
      signal.addEventListener('abort', () => resolve());
    });
    return undefined;
  }

  async push(...[, { run, fence, n, parts }]: Parameters<RunsPort['push']>): ReturnType<RunsPort['push']> {
    if (fence !== this.fence) throw new TuttiError('fenced', 'The lease is lost.');
    if (n > this.parts.length) throw new TuttiError('out_of_order', 'A gap.', { expected: this.parts.length });
    await this.gate;
    this.parts.push(...parts.slice(this.parts.length - n));
    this.pushes.push({ n, count: parts.length });
    for (const watcher of this.watchers) watcher.parts(1, n, parts);
    return { committed: this.parts.length, cancelled: isTerminal(this.find(run).state) };
  }

  async heartbeat(...[, { run, fence }]: Parameters<RunsPort['heartbeat']>): ReturnType<RunsPort['heartbeat']> {
    await Promise.resolve();
    const { state } = this.find(run);
    if (fence !== this.fence) throw new TuttiError('fenced', 'The lease is lost.');
    return { committed: this.parts.length, cancelled: isTerminal(state) };
  }

  finish(...[, { run, fence }]: Parameters<RunsPort['finish']>): Promise<Run> {
    if (fence !== this.fence) return Promise.reject(new TuttiError('fenced', 'The lease is lost.'));
    return Promise.resolve(this.end(run, 'completed'));
  }

  fail(...[, { run }]: Parameters<RunsPort['fail']>): Promise<Run> {
    return Promise.resolve(this.end(run, 'failed'));
  }

  onCancelled(run: string, listener: () => void): () => void {
    this.#cancelled.set(run, listener);
    return () => this.#cancelled.delete(run);
  }
}

export interface Stand {
  url: string;
  port: number;
  app: TemplatedApp;
  rooms: StandRooms;
  runs: StandRuns;
  http: HttpServer;
  metrics: PrometheusMetrics;
  log: ReturnType<typeof recordLog>;
  health: { ready: boolean };
  close(): void;
}

/** The HTTP edge on a free port over a core in memory. */
export async function standUp(options: Partial<HttpDeps> = {}): Promise<Stand> {
  const rooms = new StandRooms();
  const runs = new StandRuns();
  const metrics = createMetrics();
  const log = recordLog();
  const health = { ready: true };
  const app = uWS.App();
  const http = mountHttp(app, {
    rooms,
    runs,
    auth: new StandAuth(),
    metrics,
    log,
    health: {
      draining: false,
      live: () => true,
      ready: async () => ({
        ready: health.ready,
        reasons: health.ready ? [] : ['Postgres does not answer'],
        degraded: [],
      }),
    },
    allowedOrigins: ['https://app.example'],
    inFlight: new InFlight({ perSession: 1000, bytesPerSession: 2 ** 24, bytesPerTenant: 2 ** 27 }),
    limits: {
      maxBodyBytes: 256 * 1024,
      requestsMax: 1000,
      streamBufferBytes: 1024 * 1024,
      commandsPerSecond: 10_000,
      tenantCommandsPerSecond: 100_000,
      tokenGraceMs: 0,
    },
    ...options,
  });
  rooms.publishOut = http;
  const socket = await new Promise<us_listen_socket>((resolve, reject) => {
    app.listen('127.0.0.1', 0, (listening) => (listening ? resolve(listening) : reject(new Error('no port'))));
  });
  const port = uWS.us_socket_local_port(socket);
  const url = `http://127.0.0.1:${port}`;
  return { url, port, app, rooms, runs, http, metrics, log, health, close: () => void app.close() };
}

/** A connection that sends what it is told, byte for byte. */
export class RawConnection {
  readonly socket: Socket;
  received = '';
  closed = false;

  constructor(port: number) {
    this.socket = connect(port, '127.0.0.1');
    this.socket.on('data', (bytes) => {
      this.received += bytes.toString('latin1');
    });
    this.socket.on('error', () => {});
    this.socket.on('close', () => {
      this.closed = true;
    });
  }

  send(data: string | Uint8Array): void {
    this.socket.write(data);
  }

  /** Status of the first answer. */
  async status(): Promise<number> {
    await until(() => this.closed || this.received.includes('\r\n\r\n'));
    return Number(/^HTTP\/1\.1 (\d{3})/.exec(this.received)?.[1] ?? 0);
  }
}

/** Waits for something to become true, 10 s at most. */
export async function until(check: () => boolean): Promise<void> {
  const deadline = Date.now() + 10_000;
  while (!check()) {
    if (Date.now() > deadline) throw new Error(`not within 10 s: ${check}`);
    await new Promise((wait) => setTimeout(wait, 5));
  }
}

export const as = (who: string, more: Record<string, string> = {}): Record<string, string> => ({
  authorization: `Bearer ${who}`,
  ...more,
});

export const jsonAs = (who: string): Record<string, string> => as(who, { 'content-type': 'application/json' });
