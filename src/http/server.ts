import type { TemplatedApp } from 'uWebSockets.js';
import type { Registry } from 'prom-client';
import type { RoomKey } from '../core/keys.js';
import type { InFlight } from '../core/limits.js';
import type { Logger, Metrics } from '../core/telemetry.js';
import type { Outlet, Viewer } from '../core/viewer.js';
import { TuttiError } from '../errors.js';
import type { Frame } from '../protocol/frames.js';
import type { AuthPort, ConnectionsPort, HealthPort, RevocationsPort, RoomsPort, RunsPort } from './ports.js';
import { Rates } from './rates.js';
import { RoomStreams } from './room-stream.js';
import type { Route } from './route.js';
import { Router } from './router.js';
import { documentationRoutes, healthRoutes } from './routes/operations.js';
import { roomRoutes } from './routes/rooms.js';
import { runRoutes } from './routes/runs.js';
import { tokenRoutes } from './routes/tokens.js';
import { workerRoutes } from './routes/worker.js';
import { RunStreams } from './run-stream.js';
import { Standing } from './standing.js';
import { StaticFiles } from './static.js';

export interface HttpLimits {
  /** Largest JSON body, in bytes. */
  maxBodyBytes: number;
  /** Requests served at a time, lasting ones left out. */
  requestsMax: number;
  /** What a stream may have waiting for a slow reader before it is cut, in bytes. */
  streamBufferBytes: number;
  /** Requests per second of one principal and of one tenant; twice as many in a burst. */
  commandsPerSecond: number;
  tenantCommandsPerSecond: number;
  /** How long a stream outlives its token, in ms. */
  tokenGraceMs: number;
}

export interface HttpDeps {
  rooms: RoomsPort;
  runs: RunsPort;
  auth: AuthPort;
  metrics: Metrics & { registry: Registry };
  health: HealthPort;
  log: Logger;
  limits: HttpLimits;
  /** Origins whose pages may read answers, or `*`. Pages of the gateway itself always may. */
  allowedOrigins: readonly string[];
  /** Directory of the built page; without one `/` is not found. */
  webDir?: string;
  /** Counts streams together with sockets. */
  connections?: ConnectionsPort;
  /** Counts what waits for an answer together with the commands of sockets. */
  inFlight: InFlight;
  /** Ends streams, claims and worker bodies whose credential is revoked. */
  revocations?: RevocationsPort;
  /** Routes beyond the contract, such as those of the demo. They are described with the others. */
  extraRoutes?: readonly Route[];
}

/** How long clients that were answered in the middle of a request have to read the answer, in ms. */
const ANSWERS_READ_MS = 1500;

/** Everything served over HTTP on one app of uWS. */
export class HttpServer implements Outlet {
  readonly #roomStreams: RoomStreams;
  readonly #runStreams: RunStreams;
  readonly #standing: Standing;
  readonly #draining: AbortController;
  /** Whether requests that last were open when the drain began. */
  #held = false;

  constructor(roomStreams: RoomStreams, runStreams: RunStreams, standing: Standing, draining: AbortController) {
    this.#roomStreams = roomStreams;
    this.#runStreams = runStreams;
    this.#standing = standing;
    this.#draining = draining;
  }

  publish(room: RoomKey, frame: Frame, except?: Viewer): void {
    this.#roomStreams.publish(room, frame, except);
  }

  /**
   * Lets waiting claims return empty and ends every stream, spread over at most `withinMs`; their readers reconnect where
   * traffic still goes.
   */
  async dismiss({ withinMs }: { withinMs: number }): Promise<void> {
    this.#held = this.#standing.size > 0;
    this.#draining.abort();
    await Promise.all([this.#roomStreams.dismiss(withinMs), this.#runStreams.dismiss(withinMs)]);
    // Claims answer in later turns of the loop.
    await new Promise((resolve) => setImmediate(resolve));
  }

  /**
   * Refuses what still lasts, such as the open body of a worker, and waits until the answers were read: a process that
   * is gone while a client still sends resets the connection, and the answer with it.
   */
  async close(): Promise<void> {
    this.#standing.close(new TuttiError('draining', 'This gateway is leaving; go on at another.'));
    if (this.#held) await new Promise((resolve) => setTimeout(resolve, ANSWERS_READ_MS));
  }
}

/** Declares all routes on `app`, behind every more specific pattern such as `/socket.io/*`. */
export function mountHttp(app: TemplatedApp, deps: HttpDeps): HttpServer {
  const { rooms, runs, auth, metrics, log, limits } = deps;
  const draining = new AbortController();
  const { connections, revocations } = deps;
  const standing = new Standing({ connections, revocations, tokenGraceMs: limits.tokenGraceMs });
  const maxWaitingBytes = limits.streamBufferBytes;
  const roomStreams = new RoomStreams({ rooms, metrics, maxWaitingBytes, standing });
  const runStreams = new RunStreams({ runs, metrics, maxWaitingBytes, standing });
  const routes = [
    ...tokenRoutes(auth),
    ...roomRoutes(rooms, roomStreams),
    ...runRoutes(runs, runStreams),
    ...workerRoutes(runs, draining.signal, standing),
    ...healthRoutes(deps.health, metrics.registry),
    ...(deps.extraRoutes ?? []),
  ];
  const router = new Router([...routes, ...documentationRoutes(routes)], {
    auth,
    rates: new Rates(limits, metrics),
    inFlight: deps.inFlight,
    requestsMax: limits.requestsMax,
    lasting: () => standing.size,
    files: new StaticFiles(deps.webDir),
    metrics,
    log,
    maxBodyBytes: limits.maxBodyBytes,
    allowedOrigins: deps.allowedOrigins,
    leaving: () => deps.health.draining,
  });
  app.any('/*', (res, req) => router.handle(res, req));
  return new HttpServer(roomStreams, runStreams, standing, draining);
}
