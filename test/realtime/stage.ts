import uWS from 'uWebSockets.js';
import { EventEmitter } from 'node:events';
import { Socket as TcpSocket } from 'node:net';
import type { Revocation } from '../../src/core/directory.js';
import { roomKey } from '../../src/core/keys.js';
import { ConnectionLimits, InFlight } from '../../src/core/limits.js';
import { actorOf, type Principal, requireRight } from '../../src/core/principal.js';
import type { Logger, Metrics } from '../../src/core/telemetry.js';
import type { Viewer } from '../../src/core/viewer.js';
import { TuttiError } from '../../src/errors.js';
import { rightsOn } from '../../src/protocol/capabilities.js';
import { broadcastFrame, type EventRecord, eventFrame, eventJson } from '../../src/protocol/frames.js';
import { toJsonText } from '../../src/protocol/primitives.js';
import type { Run } from '../../src/protocol/runs.js';
import type { Assignment, PushReply } from '../../src/protocol/worker.js';
import type { ControlRedis } from '../../src/realtime/control.js';
import { SocketServer, type SocketServerDeps, type SocketServerOptions } from '../../src/realtime/server.js';

export const allRights: Principal['capabilities'] = {
  '*': ['join', 'publish', 'broadcast', 'run.create', 'run.cancel'],
};

/** Tokens are JSON of a principal; `error` in it refuses with that code, `delayMs` makes verification slow. */
export const tokenOf = (principal: Partial<Principal> & { error?: string; delayMs?: number } = {}): string =>
  JSON.stringify({
    kind: 'user',
    id: 'ann',
    tenant: 'demo',
    capabilities: allRights,
    expiresAt: Date.now() + 3_600_000,
    ...principal,
  });

async function principalOf(text: string): Promise<Principal> {
  if (!text.startsWith('{')) throw new TuttiError('unauthenticated', 'This token is not valid.');
  const { error, delayMs, ...principal } = JSON.parse(text);
  if (delayMs) await new Promise((resolve) => setTimeout(resolve, delayMs));
  if (error === 'fault') throw new Error('a secret of the database');
  if (error) throw new TuttiError(error, 'Refused.');
  return principal;
}

type RoomsPort = SocketServerDeps['rooms'];

/** Rooms without feeds or a database: enough of them for sockets to be tested against. */
class StageRooms implements RoomsPort {
  readonly followed = new Map<Viewer, Set<string>>();
  readonly left: string[] = [];
  readonly published: EventRecord[] = [];
  joinDelayMs = 0;

  constructor(private readonly server: () => SocketServer) {}

  async join(
    principal: Principal,
    { room }: { room: string },
    viewer: Viewer,
    reply: Parameters<RoomsPort['join']>[3],
  ): Promise<void> {
    const key = roomKey(requireRight(principal, room, 'join'), room);
    if (this.joinDelayMs > 0) await new Promise((resolve) => setTimeout(resolve, this.joinDelayMs));
    const rooms = this.followed.get(viewer) ?? new Set();
    this.followed.set(viewer, rooms.add(room));
    viewer.follow(key);
    reply({
      position: { epoch: 'e', seq: this.published.length },
      resumed: false,
      head: this.published.length,
      runs: [],
      capabilities: rightsOn(principal.capabilities, room),
    });
  }

  expectPace(): void {
    // Nobody publishes too fast here.
  }

  leave(principal: Principal, { room }: { room: string }, viewer: Viewer): void {
    if (!this.followed.get(viewer)?.delete(room)) throw new TuttiError('not_joined', 'You have not joined this room.');
    viewer.unfollow(roomKey(principal.tenant ?? '', room));
  }

  leaveAll(viewer: Viewer): void {
    this.left.push(viewer.id);
    this.followed.delete(viewer);
  }

  joined(viewer: Viewer): string[] {
    return [...(this.followed.get(viewer) ?? [])];
  }

  async publish(principal: Principal, payload: Parameters<RoomsPort['publish']>[1]) {
    const tenant = requireRight(principal, payload.room, 'publish');
    const seq = this.published.length + 1;
    const event: EventRecord = {
      ...payload,
      mid: payload.mid ?? `m${seq}`,
      epoch: 'e',
      seq,
      by: toJsonText(actorOf(principal)),
      at: 1,
    };
    this.published.push(event);
    await Promise.resolve();
    this.server().publish(roomKey(tenant, payload.room), eventFrame(event));
    return { position: { epoch: 'e', seq }, mid: event.mid, at: 1, duplicate: false };
  }

  async history() {
    return { events: this.published.map(eventJson), epoch: 'e', head: this.published.length, floor: 0 };
  }

  broadcast(principal: Principal, payload: Parameters<RoomsPort['broadcast']>[1], sender?: Viewer): void {
    const tenant = requireRight(principal, payload.room, 'broadcast');
    const frame = broadcastFrame(payload.room, payload.type, payload.data, actorOf(principal));
    this.server().publish(roomKey(tenant, payload.room), frame, sender);
  }
}

export const runOf = (id: string, state: Run['state'] = 'claimed'): Run => ({
  id,
  room: 'lobby',
  model: 'm',
  state,
  attempt: 1,
  initiator: { kind: 'user', id: 'ann' },
  createdAt: 1,
});

interface StageClaim {
  models: string[];
  open: boolean;
  give(assignment: Assignment | undefined): void;
}

/** Runs without a database: assignments are handed out by the test. */
class StageRuns {
  readonly cancels = new EventEmitter();
  readonly calls: string[] = [];
  readonly waiting: StageClaim[] = [];
  answer: PushReply | TuttiError = { committed: 1, cancelled: false };
  /** Pushes wait for it. */
  gate: Promise<void> | undefined;

  create = async () => ({ run: runOf('r0', 'queued'), created: true });
  cancel = async (_: Principal, id: string) => runOf(id, 'cancelled');
  claim = (_: Principal, { models }: { models: string[] }, signal: AbortSignal) =>
    new Promise<Assignment | undefined>((resolve) => {
      const claim: StageClaim = {
        models,
        open: true,
        give(assignment) {
          claim.open = false;
          resolve(assignment);
        },
      };
      this.waiting.push(claim);
      signal.addEventListener('abort', () => claim.give(undefined));
    });
  push = (_: Principal, { run, n }: { run: string; n: number }) => this.#say(`push ${run} ${n}`);
  heartbeat = (_: Principal, { run }: { run: string }) => this.#say(`heartbeat ${run}`);
  finish = async (_: Principal, { run }: { run: string }) => {
    this.calls.push(`finish ${run}`);
    return runOf(run, 'completed');
  };
  fail = async (_: Principal, { run }: { run: string }) => {
    this.calls.push(`fail ${run}`);
    return runOf(run, 'failed');
  };
  onCancelled = (run: string, listener: () => void) => {
    this.cancels.on(run, listener);
    return () => void this.cancels.off(run, listener);
  };

  async #say(call: string): Promise<PushReply> {
    this.calls.push(call);
    await this.gate;
    if (this.answer instanceof TuttiError) throw this.answer;
    return this.answer;
  }
}

/** Metrics and log lines as they were reported. */
class Recorder implements Metrics, Logger {
  readonly counts = new Map<string, number>();
  readonly lines: string[] = [];
  add(name: string, labels: object, by = 1): void {
    const key = [name, ...Object.values(labels)].join(' ');
    this.counts.set(key, (this.counts.get(key) ?? 0) + by);
  }
  observe(): void {}
  gauge(): void {}
  debug = (fields: object, message: string) => this.#line(fields, message);
  info = this.debug;
  warn = this.debug;
  error = this.debug;
  #line(fields: object, message: string): void {
    const { err, ...rest } = fields as { err?: Error };
    this.lines.push(`${JSON.stringify(rest)} ${err?.message ?? ''} ${message}`);
  }
}

export interface Stage {
  port: number;
  url: string;
  server: SocketServer;
  rooms: StageRooms;
  runs: StageRuns;
  recorder: Recorder;
  revoke(revocation: Omit<Revocation, 'id' | 'at'>): void;
  close(): Promise<void>;
}

/** A socket server on a free port (or the one given), without the rest of a gateway. */
export async function openStage(
  options: Partial<SocketServerOptions> = {},
  { port = 0, redis }: { port?: number; redis?: ControlRedis } = {},
): Promise<Stage> {
  const app = uWS.App();
  const recorder = new Recorder();
  const runs = new StageRuns();
  const listeners: ((revocation: Revocation) => void)[] = [];
  const rooms = new StageRooms(() => server);
  const server: SocketServer = new SocketServer({
    upgraded: () => undefined,
    app,
    rooms,
    runs,
    auth: { token: principalOf, key: principalOf },
    admission: new ConnectionLimits({ total: 100_000, perTenant: 100_000, perUser: 5 }),
    inFlight: new InFlight({ perSession: 1000, bytesPerSession: 2 ** 24, bytesPerTenant: 2 ** 27 }),
    revocations: {
      onRevoked: (listener) => void listeners.push(listener),
      applies: (revocation, principal) => revocation.subject === principal.id,
      poke: () => undefined,
    },
    metrics: recorder,
    log: recorder,
    nodeId: 'stage',
    ...(redis ? { redis } : {}),
    options: {
      allowedOrigins: [],
      maxPayloadBytes: 256 * 1024,
      maxBackpressureBytes: 256 * 1024,
      maxConnections: 1000,
      pingIntervalMs: 10_000,
      pingTimeoutMs: 8_000,
      connectionsShare: 0.3,
      connectTimeoutMs: 2_000,
      rates: { perSession: 1000, perTenant: 10_000 },
      workerRates: { perSession: 1000, perTenant: 10_000 },
      times: { noticeMs: 60_000, graceMs: 25_000 },
      announced: { rooms: 100 },
      ...options,
    },
  });
  server.start();
  let listening: uWS.us_listen_socket | false = false;
  await new Promise<void>((resolve, reject) => {
    app.listen('127.0.0.1', port, (socket) => {
      listening = socket;
      if (socket) resolve();
      else reject(new Error(`port ${port} is taken`));
    });
  });
  const bound = uWS.us_socket_local_port(listening as unknown as uWS.us_listen_socket);
  return {
    port: bound,
    url: `http://127.0.0.1:${bound}`,
    server,
    rooms,
    runs,
    recorder,
    revoke: (revocation) => {
      for (const listener of listeners) listener({ id: 'x', at: Date.now(), ...revocation });
    },
    async close() {
      await server.dismiss({ withinMs: 0 });
      await server.close();
      app.close();
    },
  };
}

/** A WebSocket client of bare bytes, for what a well-behaved library would not send, and for reading slowly. */
export class RawClient {
  readonly socket = new TcpSocket();
  received = '';
  closed: Promise<void>;

  constructor(port: number) {
    this.socket.on('error', () => undefined);
    this.closed = new Promise((resolve) => this.socket.once('close', () => resolve()));
    this.socket.on('data', (chunk) => {
      this.received += chunk.toString('latin1');
    });
    this.socket.connect(port, '127.0.0.1');
  }

  /** An HTTP request line and headers, as given. */
  request(target: string, headers: Record<string, string> = {}, method = 'GET'): void {
    const lines = Object.entries({ Host: '127.0.0.1', ...headers }).map(([name, value]) => `${name}: ${value}`);
    this.socket.write(`${method} ${target} HTTP/1.1\r\n${lines.join('\r\n')}\r\n\r\n`);
  }

  upgrade(target = '/socket.io/?EIO=4&transport=websocket', headers: Record<string, string> = {}): void {
    this.request(target, {
      Connection: 'Upgrade',
      Upgrade: 'websocket',
      'Sec-WebSocket-Version': '13',
      'Sec-WebSocket-Key': 'dGhlIHNhbXBsZSBub25jZQ==',
      ...headers,
    });
  }

  /** A masked frame; the mask is zero. */
  frame(payload: string | Buffer, opcode = 0x1): void {
    const body = Buffer.from(payload);
    const long = body.length >= 126;
    const head = Buffer.alloc(long ? 14 : 6);
    head[0] = 0x80 | opcode;
    head[1] = 0x80 | (long ? 127 : body.length);
    if (long) head.writeBigUInt64BE(BigInt(body.length), 2);
    this.socket.write(Buffer.concat([head, body]));
  }

  async until(text: string, timeoutMs = 10_000): Promise<void> {
    const end = Date.now() + timeoutMs;
    while (!this.received.includes(text)) {
      if (Date.now() > end || this.socket.closed) throw new Error(`no ${text} in: ${this.received.slice(-500)}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  /** Connects to namespace `/` and joins a room. */
  async join(room: string, token = tokenOf()): Promise<void> {
    this.upgrade();
    await this.until('"sid"');
    this.frame(`40${JSON.stringify({ token })}`);
    await this.until('session.ready');
    this.frame(`420["room.join",${JSON.stringify({ room })}]`);
    await this.until('430[{"ok":true');
  }
}
