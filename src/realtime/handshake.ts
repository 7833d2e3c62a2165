import type { Socket } from 'socket.io';
import type { Principal } from '../core/principal.js';
import { countLimit, type Logger, type Metrics } from '../core/telemetry.js';
import { asTuttiError, TuttiError } from '../errors.js';
import type { Link, LinkData } from './link.js';
import { Session, type Sessions } from './session.js';
import type { Turns } from './turns.js';

/** What a handshake asks of authentication. */
export interface Credentials {
  token(token: string): Promise<Principal>;
  key(key: string): Promise<Principal>;
}

export interface Admission {
  /** @returns what gives the place back. @throws TuttiError `quota_exceeded`. */
  admit(principal: Principal): () => void;
}

export interface HandshakeDeps {
  auth: Credentials;
  admission: Admission;
  sessions: Sessions;
  metrics: Metrics;
  log: Logger;
  draining(): boolean;
  turns: Turns;
}

/** Longest credential looked at, in UTF-16 units. */
const MAX_CREDENTIAL = 16_384;
const SECRETS_IN_QUERY = ['token', 'key', 'access_token', 'auth', 'authorization'];

const linkOf = (socket: Socket): Link | undefined => {
  const { transport } = socket.conn as unknown as { transport: { socket?: { getUserData(): LinkData } } };
  return socket.conn.readyState === 'open' ? transport.socket?.getUserData().link : undefined;
};

function credential(socket: Socket, field: 'token' | 'key'): string {
  const { auth, query } = socket.handshake;
  if (SECRETS_IN_QUERY.some((name) => name in query)) {
    throw new TuttiError('unauthenticated', 'Credentials do not belong in a query string; send them as auth.');
  }
  const value: unknown = Object.hasOwn(auth, field) ? auth[field] : undefined;
  if (typeof value !== 'string' || value === '' || value.length > MAX_CREDENTIAL) {
    throw new TuttiError('unauthenticated', `Connect with auth { ${field} }.`);
  }
  return value;
}

/** Lets go of what Socket.IO keeps of the handshake: headers, and the credential itself. */
function forgetRequest(socket: Socket): void {
  const { address, issued, time } = socket.handshake;
  const handshake = { headers: {}, query: {}, auth: {}, url: '', xdomain: false, secure: false, address, issued, time };
  Object.assign(socket, { handshake });
  Object.assign(socket.conn, { request: undefined });
}

async function verify(socket: Socket, namespace: '/' | '/worker', auth: Credentials): Promise<Principal> {
  if (namespace === '/') return auth.token(credential(socket, 'token'));
  const principal = await auth.key(credential(socket, 'key'));
  if (principal.kind !== 'worker') throw new TuttiError('forbidden', 'This key has no scope "worker".');
  return principal;
}

async function admit(socket: Socket, namespace: '/' | '/worker', deps: HandshakeDeps): Promise<Session> {
  if (deps.draining()) throw new TuttiError('draining', 'This gateway is leaving; connect again.');
  const link = linkOf(socket);
  if (!link) throw new TuttiError('bad_request', 'The connection is gone.');
  // Socket.IO itself would let a second CONNECT in while the first is being verified.
  if (link.namespaces.has(namespace)) throw new TuttiError('conflict', 'This connection has a session already.');
  link.namespaces.add(namespace);
  try {
    const principal = await verify(socket, namespace, deps.auth);
    // Many are verified in one turn of the loop, off it.
    await deps.turns.passing('entering');
    if (deps.draining()) throw new TuttiError('draining', 'This gateway is leaving; connect again.');
    if (!link.open) throw new TuttiError('bad_request', 'The connection is gone.');
    const release = deps.admission.admit(principal);
    link.connection = socket.conn;
    return new Session(socket.id, namespace, principal, link, socket.conn, release);
  } catch (thrown) {
    link.namespaces.delete(namespace);
    throw thrown;
  }
}

/**
 * Middleware of a namespace: lets a socket in with its {@link Session} as `socket.data`, or refuses it with a
 * `connect_error` whose `data` is the wire error. A fault of a dependency refuses. Who comes to a gateway that drains has
 * its connection closed instead. Handshakes take turns with everything else, and so do the joins and replays that follow.
 */
export function handshake(namespace: '/' | '/worker', deps: HandshakeDeps) {
  const enter = (socket: Socket, next: (error?: Error) => void): void => {
    admit(socket, namespace, deps).then(
      (session) => {
        forgetRequest(socket);
        socket.data = session;
        deps.sessions.add(session);
        next();
        // Socket.IO connects the socket in the next tick, or drops it without a word if its connection just closed.
        process.nextTick(() => {
          if (!socket.connected && session.closed()) deps.sessions.delete(session);
        });
      },
      (thrown: unknown) => {
        const refusal = asTuttiError(thrown);
        deps.metrics.add('connection_refusals', { code: refusal.code });
        countLimit(deps.metrics, refusal.limit);
        // socket.io-client comes back by itself from a lost connection, from a refusal it does not.
        if (refusal.code === 'draining') socket.conn.close();
        if (refusal.code === 'internal') deps.log.error({ err: refusal.cause, namespace }, 'handshake failed');
        next(Object.assign(new Error(refusal.message), { data: refusal.toWire() }));
      },
    );
  };
  return (socket: Socket, next: (error?: Error) => void): void => enter(socket, next);
}
