import net from 'node:net';

/** A host and port that DATABASE_URL names. */
export interface Server {
  readonly host: string;
  readonly port: number;
}

/** Longest wait for one of several servers to take a connection, in ms: one that vanished must not hide the others. */
const DIAL_TIMEOUT_MS = 1500;
const PARTS = /^(postgres(?:ql)?:\/\/(?:[^@/?#]*@)?)([^/?#]*)(.*)$/;
const HOST = /^(\[[^\]]*\]|[^:]*)(?::(\d+))?$/;

/**
 * The servers of one installation, as `postgres://user@a:5432,b:5432/database` names them, and the one that is
 * believed to be the primary. Shared by all connections of a process: what one of them finds out, all of them know.
 */
export class Servers {
  /** For the driver: names one server only, as it would else try the others by rules of its own. */
  readonly url: string;
  readonly list: readonly Server[];
  #current = 0;

  /** @param only where one of the URL's servers is asked for by itself */
  constructor(url: string, only?: Server) {
    const [, before = '', hosts = '', after = ''] = PARTS.exec(url) ?? [];
    const names = hosts.split(',');
    this.list = only ? [only] : names.map(serverOf);
    this.url = names.length > 1 ? `${before}${names[0]}${withoutTarget(after)}` : url;
  }

  /** The same installation, seen as one of its servers. */
  only(server: Server): Servers {
    return new Servers(this.url, server);
  }

  /** This server is the primary, as far as anybody knows. */
  begin(server: Server): void {
    this.#current = Math.max(0, this.list.indexOf(server));
  }

  /** This server is not the primary: connections that open from now on begin with the next one. */
  pass(server: Server): void {
    if (this.list[this.#current] === server) this.#current = (this.#current + 1) % this.list.length;
  }

  /**
   * Connects to the server believed to be the primary, else to the next one that takes a connection.
   * @throws Error of the last server tried, or where the signal aborts.
   */
  async connect(signal: AbortSignal): Promise<{ socket: net.Socket; server: Server }> {
    let problem: unknown;
    for (let tried = 0; tried < this.list.length; tried++) {
      const server = this.list[this.#current];
      if (!server || signal.aborted) break;
      try {
        return { socket: await dial(server, signal), server };
      } catch (error) {
        problem = error;
        this.pass(server);
      }
    }
    throw problem ?? new Error('The connection was given up.');
  }
}

function serverOf(text: string): Server {
  const [, host = '', port] = HOST.exec(text) ?? [];
  return { host: decodeURIComponent(host.replace(/^\[|\]$/g, '')) || 'localhost', port: Number(port ?? 5432) };
}

function dial(server: Server, signal: AbortSignal): Promise<net.Socket> {
  return new Promise((resolve, reject) => {
    const socket = net.connect({ ...server, signal });
    const timer = setTimeout(() => {
      socket.destroy(Object.assign(new Error('The server does not answer.'), { code: 'CONNECT_TIMEOUT' }));
    }, DIAL_TIMEOUT_MS);
    socket.once('connect', () => {
      clearTimeout(timer);
      socket.off('error', failed);
      resolve(socket);
    });
    const failed = (error: Error) => {
      clearTimeout(timer);
      reject(error);
    };
    socket.once('error', failed);
  });
}

/** libpq's way to ask for the primary, which is what is done here anyway. */
const withoutTarget = (after: string): string =>
  after.replace(/([?&])target_session_attrs=[^&#]*(&?)/, (_, mark, more) => (more ? mark : ''));
