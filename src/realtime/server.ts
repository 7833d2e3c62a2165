import type uWS from 'uWebSockets.js';
import { Server, type Socket } from 'socket.io';
import type { Revocation } from '../core/directory.js';
import type { RoomKey } from '../core/keys.js';
import type { InFlight } from '../core/limits.js';
import type { Principal } from '../core/principal.js';
import { countLimit, type Logger, type Metrics } from '../core/telemetry.js';
import type { Outlet, Viewer } from '../core/viewer.js';
import { encodePush, type Frame } from '../protocol/frames.js';
import { Backlog } from './backlog.js';
import { ControlPlane, type ControlRedis } from './control.js';
import { Dispatch, type DispatchDeps } from './dispatch.js';
import { type HandlerDeps, roomCommands } from './handlers.js';
import { type Admission, type Credentials, handshake } from './handshake.js';
import type { Link } from './link.js';
import { CommandLimits, type CommandRates } from './rate.js';
import { type Session, Sessions, type SessionTimes } from './session.js';
import { Turns } from './turns.js';
import { guardApp, type UpgradeOptions } from './upgrade.js';
import { SocketViewer, topicOf } from './viewer.js';
import { runCommands, type WorkerRuns, WorkerSeat } from './worker.js';

export interface SocketServerOptions extends Omit<UpgradeOptions, 'maxMessagesPerSecond'> {
  pingIntervalMs: number;
  pingTimeoutMs: number;
  /** Of the time of the event loop that sockets may take while they open, enter and close, above 0, up to 1. */
  connectionsShare: number;
  /** Time a socket has to present its credential, in ms. */
  connectTimeoutMs: number;
  rates: CommandRates;
  /** The same for workers, which push output. */
  workerRates: CommandRates;
  times: SessionTimes;
  /** What `session.ready` tells clients about their limits. */
  announced: Record<string, number>;
}

export interface SocketServerDeps {
  app: uWS.TemplatedApp;
  rooms: HandlerDeps['rooms'];
  runs: HandlerDeps['runs'] & WorkerRuns;
  auth: Credentials;
  admission: Admission;
  inFlight: InFlight;
  revocations: {
    onRevoked(listener: (revocation: Revocation) => void): void;
    applies(revocation: Revocation, principal: Principal): boolean;
    poke(): void;
  };
  /** Called for each connection of the app that becomes a WebSocket. */
  upgraded(): void;
  metrics: Metrics;
  log: Logger;
  nodeId: string;
  /** Where the control plane between gateways runs; without it revocations travel by bus and polling alone. */
  redis?: ControlRedis;
  options: SocketServerOptions;
}

/** Messages a second of one connection, over its rate of commands: heartbeats, acks and the slack before a close. */
const messagesOf = ({ perSession }: CommandRates): number => perSession * 20 + 200;

/** Socket.IO on uWebSockets.js: sessions of clients at `/` and of workers at `/worker`. */
export class SocketServer implements Outlet {
  readonly #deps: SocketServerDeps;
  readonly #io: Server;
  readonly #sessions: Sessions;
  readonly #limits: CommandLimits;
  readonly #workerLimits: CommandLimits;
  readonly #control: ControlPlane;
  readonly #links: ReadonlySet<Link>;
  readonly #turns: Turns;
  readonly #backlog: Backlog;
  #state: 'open' | 'draining' | 'closed' = 'open';

  /** Adds its routes to the app; they serve as soon as the app listens. */
  constructor(deps: SocketServerDeps) {
    this.#deps = deps;
    const { options, log, metrics } = deps;
    this.#turns = new Turns(options.connectionsShare);
    this.#sessions = new Sessions(options.times, log);
    this.#limits = new CommandLimits(options.rates, metrics);
    this.#workerLimits = new CommandLimits(options.workerRates, metrics);
    this.#control = new ControlPlane(deps.redis, log);
    const control = this.#control;
    this.#io = new Server({
      path: '/socket.io/',
      transports: ['websocket'],
      serveClient: false,
      pingInterval: options.pingIntervalMs,
      pingTimeout: options.pingTimeoutMs,
      connectTimeout: options.connectTimeoutMs,
      maxHttpBufferSize: options.maxPayloadBytes,
      adapter: function adapterOf(namespace) {
        return control.adapter(namespace);
      },
    });
    const maxMessagesPerSecond = messagesOf(options.rates);
    const { guarded, links } = guardApp(deps.app, { ...options, maxMessagesPerSecond }, this.#turns, {
      draining: () => this.#state !== 'open',
      refused: (code) => {
        metrics.add('connection_refusals', { code });
        if (code === 'overloaded') countLimit(metrics, 'connections');
      },
      cut: (link) => {
        const slow = this.#backlog.cut(link);
        if (slow) metrics.add('slow_closes', {});
        return slow;
      },
      upgraded: deps.upgraded,
      flooded: () => {
        metrics.add('rate_limited', { scope: 'connection' });
        log.warn({}, 'connection closed: too many messages');
      },
    });
    this.#links = links;
    metrics.gauge('connections_waiting', () => this.#turns.connections);
    metrics.gauge('commands_waiting', () => this.#turns.commands);
    this.#backlog = new Backlog(links, options.maxBackpressureBytes);
    this.#io.attachApp(guarded);
    this.#serveRooms();
    this.#serveWorkers();
    metrics.gauge('sessions', () => this.#sessions.size);
  }

  /** Begins to watch for ended and revoked tokens. */
  start(): void {
    const { revocations } = this.#deps;
    this.#sessions.start();
    revocations.onRevoked((revocation) => {
      this.#endRevoked(revocation);
      this.#control.revoked(revocation, Date.now());
    });
    this.#control.start(this.#io, (revocation) => {
      this.#endRevoked(revocation);
      revocations.poke();
    });
  }

  publish(room: RoomKey, frame: Frame, except?: Viewer): void {
    const { app, metrics } = this.#deps;
    const topic = topicOf(room);
    const readers = app.numSubscribers(topic);
    if (readers === 0) return;
    const leftOut = except instanceof SocketViewer && except.publish(room, frame);
    if (!leftOut) app.publish(topic, frame);
    this.#backlog.add(frame.length);
    metrics.add('deliveries', { push: frame.slice(4, frame.indexOf('"', 4)) }, leftOut ? readers - 1 : readers);
  }

  /**
   * Refuses new connections, tells every session to move and closes their connections, spread over at most `withinMs`.
   * Resolves when all are gone.
   */
  async dismiss({ withinMs }: { withinMs: number }): Promise<void> {
    if (this.#state === 'open') this.#state = 'draining';
    await this.#sessions.dismiss(withinMs);
    for (const link of [...this.#links]) link.terminate();
    // Closings are worked off in order.
    await this.#turns.passing('closing');
  }

  async close(): Promise<void> {
    this.#state = 'closed';
    this.#sessions.stop();
    await this.#io.close();
    this.#control.close();
  }

  #serveRooms(): void {
    const { rooms, metrics, log, nodeId, options } = this.#deps;
    const dispatch = new Dispatch(roomCommands(this.#deps), {
      ...this.#dispatchDeps(this.#limits),
      expectPace: (tenant, ahead) => rooms.expectPace(tenant, ahead),
    });
    this.#serve('/', dispatch, {
      open(session) {
        const { id, tenant, expiresAt = 0, capabilities } = session.principal;
        const ready = { session: session.id, user: id, tenant: tenant ?? '', gateway: nodeId, expiresAt, capabilities };
        session.link.send(encodePush('session.ready', { ...ready, limits: options.announced, serverTime: Date.now() }));
        session.link.gate = dispatch.gateOf(session);
        metrics.add('connections', { namespace: '/' });
        log.debug(session.fields, 'session opened');
      },
      closed(session) {
        if (session.link.slow) log.warn(session.fields, 'closed: reads too slowly');
        rooms.leaveAll(session.viewer);
        session.viewer.gone();
      },
    });
  }

  #serveWorkers(): void {
    const { runs, metrics, log, options } = this.#deps;
    const pace = messagesOf(options.workerRates);
    const seats = new WeakMap<Session, WorkerSeat>();
    const seatOf = (session: Session): WorkerSeat => {
      const seat = seats.get(session);
      if (!seat) throw new Error('a worker without a seat');
      return seat;
    };
    const dispatch = new Dispatch(runCommands(runs, seatOf), this.#dispatchDeps(this.#workerLimits));
    this.#serve('/worker', dispatch, {
      open(session, socket) {
        const seat = new WorkerSeat(runs, log);
        seats.set(session, seat);
        session.link.pace = pace;
        socket.conn.on('heartbeat', () => void seat.renew(session));
        metrics.add('connections', { namespace: '/worker' });
        log.info(session.fields, 'worker connected');
      },
      closed(session) {
        seatOf(session).close();
        log.info(session.fields, 'worker gone');
      },
    });
  }

  #serve(
    name: '/' | '/worker',
    dispatch: Dispatch,
    role: { open(session: Session, socket: Socket): void; closed(session: Session): void },
  ): void {
    const namespace = this.#io.of(name);
    const sessions = this.#sessions;
    const { auth, admission, metrics, log } = this.#deps;
    const draining = () => this.#state !== 'open';
    namespace.use(handshake(name, { turns: this.#turns, auth, admission, sessions, metrics, log, draining }));

    // One function for all sockets; Socket.IO calls it with the socket as `this`.
    function onDisconnect(this: Socket): void {
      const session = this.data as Session;
      if (!session.closed()) return;
      sessions.delete(session);
      role.closed(session);
    }
    namespace.on('connection', (socket) => {
      const session = socket.data as Session;
      dispatch.attach(socket);
      socket.on('disconnect', onDisconnect);
      role.open(session, socket);
      if (session.state === 'admitted') session.state = 'active';
    });
  }

  #dispatchDeps(limits: CommandLimits): DispatchDeps {
    const { metrics, log, inFlight } = this.#deps;
    return { metrics, log, inFlight, turns: this.#turns, limits };
  }

  #endRevoked(revocation: Revocation): void {
    const { revocations } = this.#deps;
    this.#sessions.endWhere((principal) => revocations.applies(revocation, principal), {
      code: 'unauthenticated',
      message: 'This credential was revoked.',
      reconnect: false,
    });
  }
}
