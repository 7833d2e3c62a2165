import type uWS from 'uWebSockets.js';
import { errors } from '../errors.js';
import { enterEngine, forEngine, handshakeOf } from './engine-entry.js';
import { Link, type LinkData, type SocketData } from './link.js';
import { commandId, Refusals } from './refusals.js';
import type { Turns } from './turns.js';

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
  /** A connection of the app has become a WebSocket. */
  upgraded(): void;
}

/** Whether a page of `origin` may open a socket on `host`. Browsers always send an Origin; other clients do not. */
export function originAllowed(origin: string, host: string, allowed: readonly string[]): boolean {
  if (origin === '' || allowed.includes('*') || allowed.includes(origin)) return true;
  return URL.canParse(origin) && new URL(origin).host === host.toLowerCase();
}

/** Bytes of messages that wait for a connection that has no session yet; one message is let in whatever its size. */
const HELD_BYTES = 32_768;

const HEADERS = ['sec-websocket-key', 'sec-websocket-protocol', 'sec-websocket-extensions'];

/** Engine.IO passes on why a client closed, and nobody reads it. */
const NO_REASON = new ArrayBuffer(0);

/** Passages that wait for one socket, about: those that are gone already count as well. */
const PASSAGES = 2;

/** When a client may try again that finds the gateway full, in ms. */
const FULL_RETRY_MS = 1000;

const statuses = {
  bad_request: '400 Bad Request',
  forbidden: '403 Forbidden',
  overloaded: '503 Service Unavailable',
  draining: '503 Service Unavailable',
} as const;

function refuse(res: uWS.HttpResponse, code: keyof typeof statuses, message: string): void {
  const full = code === 'overloaded';
  const refusal = {
    code,
    message,
    retryable: errors[code].retryable,
    ...(full ? { retryAfterMs: FULL_RETRY_MS } : {}),
  };
  res.cork(() => {
    res.writeStatus(statuses[code]).writeHeader('Content-Type', 'application/json');
    if (full) res.writeHeader('Retry-After', String(FULL_RETRY_MS / 1000));
    res.end(JSON.stringify(refusal));
  });
}

/**
 * What Socket.IO gets in place of the app. It takes a WebSocket handshake and nothing else: plain HTTP, polling
 * dressed up as an upgrade, and a `sid` (an upgrade of an existing connection, which would swap its socket
 * under us) never reach Engine.IO, whose code for them can end the process on uWebSockets.js.
 */
export function guardApp(app: uWS.TemplatedApp, options: UpgradeOptions, turns: Turns, hooks: UpgradeHooks) {
  const links = new Set<Link>();
  const refusals = new Refusals();

  const problem = (req: uWS.HttpRequest): [keyof typeof statuses, string] | undefined => {
    const query = new URLSearchParams(req.getQuery());
    if (query.get('transport') !== 'websocket' || query.get('EIO') !== '4' || query.has('sid')) {
      return ['bad_request', 'Only the transport websocket of Engine.IO 4 is served.'];
    }
    if (!originAllowed(req.getHeader('origin'), req.getHeader('host'), options.allowedOrigins)) {
      return ['forbidden', 'Pages of this origin may not open sockets here.'];
    }
    if (hooks.draining()) return ['draining', 'This gateway is leaving; connect again.'];
    if (Math.max(links.size, turns.connections / PASSAGES) >= options.maxConnections)
      return ['overloaded', 'This gateway is full.'];
    return undefined;
  };

  /** @returns `false` for more than somebody has to say who was not let in yet. */
  const hold = (link: Link, message: ArrayBuffer, take: (message: ArrayBuffer) => void): boolean => {
    const { held } = link;
    if (held.count > 0 && held.bytes + message.byteLength > HELD_BYTES) return false;
    held.count += 1;
    held.bytes += message.byteLength;
    const copy = message.slice(0);
    turns.pass('entering', () => {
      held.count -= 1;
      held.bytes -= copy.byteLength;
      take(copy);
    });
    return true;
  };

  const guarded = {
    any(path: string) {
      app.any(path, (res) => refuse(res, 'bad_request', 'Only the transport websocket is served.'));
      return guarded;
    },
    ws(path: string, behavior: uWS.WebSocketBehavior<LinkData>) {
      app.ws<SocketData>(path, {
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
          const handshake = handshakeOf(req, res);
          const [key, protocol, extensions] = HEADERS.map((name) => req.getHeader(name));
          res.upgrade<SocketData>({ handshake }, key ?? '', protocol ?? '', extensions ?? '', context);
          hooks.upgraded();
        },
        open(ws) {
          const { handshake } = ws.getUserData();
          const link = new Link(ws, options.maxBackpressureBytes / 4);
          links.add(link);
          turns.pass(
            'opening',
            () => {
              if (handshake) enterEngine(behavior, link, handshake);
            },
            () => !link.open,
          );
          turns.passed();
        },
        message(ws, message, isBinary) {
          const { link } = ws.getUserData();
          if (!link) return;
          const now = performance.now();
          if (link.floods(options.maxMessagesPerSecond, now)) {
            hooks.flooded();
            link.terminate();
            return;
          }
          const take = (bytes: ArrayBuffer) => {
            // Nobody speaks before it was greeted.
            if (!link.inEngine) return link.terminate();
            link.received = bytes.byteLength;
            behavior.message?.(forEngine(link), bytes, isBinary);
          };
          // What came before it and still waits goes first.
          const id = link.gate && link.held.count === 0 ? commandId(message) : undefined;
          if (link.gate && id !== undefined) {
            if (!refusals.take(link, id, now)) link.gate.pass(id, message, take);
          } else if (link.connection && link.held.count === 0) take(message);
          // Who has no session yet takes turns with those who come and go.
          else if (!hold(link, message, take)) link.terminate();
        },
        drain: (ws) => ws.getUserData().link?.onDrain(),
        close(ws, code) {
          const { link } = ws.getUserData();
          if (!link) return;
          links.delete(link);
          link.onClosed();
          // 1006: nobody said goodbye.
          link.slow = code === 1006 && hooks.cut(link);
          if (link.inEngine) {
            turns.pass('closing', () => {
              behavior.close?.(forEngine(link), code, NO_REASON);
              link.admit(undefined);
            });
          }
          turns.passed();
        },
      });
      return guarded;
    },
  };
  return { guarded, links };
}
