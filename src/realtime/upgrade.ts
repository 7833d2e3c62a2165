import type uWS from 'uWebSockets.js';
import { errors } from '../errors.js';
import { Link, type LinkData } from './link.js';

export interface UpgradeOptions {
  /** Origins whose pages may open sockets; `*` is all. The gateway's own origin and no Origin at all always may. */
  allowedOrigins: readonly string[];
  maxPayloadBytes: number;
  maxBackpressureBytes: number;
  /** Sockets of this gateway, authenticated or not. */
  maxConnections: number;
  /** Messages one connection may send in a second, of whatever kind, before it is closed. */
  maxMessagesPerSecond: number;
}

export interface UpgradeHooks {
  draining(): boolean;
  refused(code: 'bad_request' | 'forbidden' | 'overloaded' | 'draining'): void;
  /** Whether a connection that ended without a goodbye was cut for reading too slowly. */
  cut(link: Link): boolean;
  flooded(): void;
}

/** Whether a page of `origin` may open a socket on `host`. Browsers always send an Origin; other clients do not. */
export function originAllowed(origin: string, host: string, allowed: readonly string[]): boolean {
  if (origin === '' || allowed.includes('*') || allowed.includes(origin)) return true;
  return URL.canParse(origin) && new URL(origin).host === host.toLowerCase();
}

/** When a client may try again that finds the gateway full, in ms. */
const FULL_RETRY_MS = 1000;

const refusals = {
  bad_request: '400 Bad Request',
  forbidden: '403 Forbidden',
  overloaded: '503 Service Unavailable',
  draining: '503 Service Unavailable',
} as const;

function refuse(res: uWS.HttpResponse, code: keyof typeof refusals, message: string): void {
  const full = code === 'overloaded';
  const refusal = {
    code,
    message,
    retryable: errors[code].retryable,
    ...(full ? { retryAfterMs: FULL_RETRY_MS } : {}),
  };
  res.cork(() => {
    res.writeStatus(refusals[code]).writeHeader('Content-Type', 'application/json');
    if (full) res.writeHeader('Retry-After', String(FULL_RETRY_MS / 1000));
    res.end(JSON.stringify(refusal));
  });
}

/**
 * What Socket.IO gets in place of the app. It takes a WebSocket handshake and nothing else: plain HTTP, polling
 * dressed up as an upgrade, and a `sid` (an upgrade of an existing connection, which would swap its socket
 * under us) never reach Engine.IO, whose code for them can end the process on uWebSockets.js.
 */
export function guardApp(app: uWS.TemplatedApp, options: UpgradeOptions, hooks: UpgradeHooks) {
  const links = new Set<Link>();

  const problem = (req: uWS.HttpRequest): [keyof typeof refusals, string] | undefined => {
    const query = new URLSearchParams(req.getQuery());
    if (query.get('transport') !== 'websocket' || query.get('EIO') !== '4' || query.has('sid')) {
      return ['bad_request', 'Only the transport websocket of Engine.IO 4 is served.'];
    }
    if (!originAllowed(req.getHeader('origin'), req.getHeader('host'), options.allowedOrigins)) {
      return ['forbidden', 'Pages of this origin may not open sockets here.'];
    }
    if (hooks.draining()) return ['draining', 'This gateway is leaving; connect again.'];
    if (links.size >= options.maxConnections) return ['overloaded', 'This gateway is full.'];
    return undefined;
  };

  const guarded = {
    any(path: string) {
      app.any(path, (res) => refuse(res, 'bad_request', 'Only the transport websocket is served.'));
      return guarded;
    },
    ws(path: string, behavior: uWS.WebSocketBehavior<LinkData>) {
      app.ws<LinkData>(path, {
        ...behavior,
        maxPayloadLength: options.maxPayloadBytes,
        maxBackpressure: options.maxBackpressureBytes,
        closeOnBackpressureLimit: 1,
        upgrade(res, req, context) {
          const refusal = problem(req);
          if (refusal) {
            hooks.refused(refusal[0]);
            refuse(res, ...refusal);
            return;
          }
          behavior.upgrade?.(res, req, context);
        },
        open(ws) {
          const link = new Link(ws, options.maxBackpressureBytes / 4);
          links.add(link);
          ws.getUserData().link = link;
          behavior.open?.(ws);
        },
        message(ws, message, isBinary) {
          const { link } = ws.getUserData();
          const now = performance.now();
          if (link?.floods(options.maxMessagesPerSecond, now)) {
            hooks.flooded();
            link.terminate();
            return;
          }
          if (link?.refuses(message, now)) return;
          if (link) link.received = message.byteLength;
          behavior.message?.(ws, message, isBinary);
        },
        drain: (ws) => ws.getUserData().link?.onDrain(),
        close(ws, code, message) {
          const { link } = ws.getUserData();
          if (link) {
            links.delete(link);
            link.onClosed();
            // 1006: nobody said goodbye.
            link.slow = code === 1006 && hooks.cut(link);
          }
          behavior.close?.(ws, code, message);
        },
      });
      return guarded;
    },
  };
  return { guarded, links };
}
