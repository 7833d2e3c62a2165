import { type OnMessage, Wire } from './wire.js';

const PING = 0x32;
const MESSAGE = 0x34;
const EVENT = 0x32;
const ACK = 0x33;

export interface SessionOptions {
  port: number;
  /** What the CONNECT packet carries. */
  auth: object;
  namespace?: '/worker';
  /** Gives up where the server says nothing for so long, also later, in ms. By default never. */
  silenceMs?: number;
}

/** A Socket.IO session over a {@link Wire}, with as much of the protocol as measuring takes. */
export class Session {
  /** Gets every push as it stands on the wire, `42[…]`. */
  onPush: OnMessage = () => undefined;
  /** Gets every answer that nobody waits for, `43<id>[…]`. */
  onAck: OnMessage = () => undefined;
  readonly wire: Wire;
  readonly #prefix: string;
  readonly #waiting = new Map<number, (answer: Record<string, unknown>) => void>();
  #nextId = 0;

  private constructor(wire: Wire, prefix: string) {
    this.wire = wire;
    this.#prefix = prefix;
  }

  /** Resolves once the server accepted. @throws Error with its refusal, as it stands on the wire, or that it closed. */
  static async open({ port, auth, namespace, silenceMs }: SessionOptions): Promise<Session> {
    const prefix = namespace ? `${namespace},` : '';
    const path = '/socket.io/?EIO=4&transport=websocket';
    const wire = await Wire.open(port, path, undefined, silenceMs);
    const session = new Session(wire, prefix);
    await new Promise<void>((accepted, refused) => {
      wire.onClose = () => refused(new Error('closed'));
      wire.onMessage = (buffer, start, end) => {
        const text = buffer.toString('latin1', start, end);
        if (text.startsWith('0{')) wire.send(`40${prefix}${JSON.stringify(auth)}`);
        else if (text.startsWith('40')) {
          wire.onMessage = session.#receive;
          accepted();
        } else if (text.startsWith('44')) refused(new Error(text));
      };
    });
    wire.onClose = () => undefined;
    return session;
  }

  /** The message of a command; its answer goes to {@link onAck}. Send it with `wire.send`, many in one write. */
  command(name: string, payload: object): string {
    return `42${this.#prefix}${this.#nextId++}["${name}",${JSON.stringify(payload)}]`;
  }

  /** @throws Error unless the answer is `ok`. */
  async call(name: string, payload: object): Promise<Record<string, unknown>> {
    const id = this.#nextId;
    const text = this.command(name, payload);
    const answer = await new Promise<Record<string, unknown>>((resolve) => {
      this.#waiting.set(id, resolve);
      this.wire.send(text);
    });
    if (answer.ok !== true) throw new Error(`${name}: ${JSON.stringify(answer)}`);
    return answer;
  }

  close(): void {
    this.wire.close();
  }

  readonly #receive: OnMessage = (buffer, start, end) => {
    if (buffer[start] === PING && end - start === 1) this.wire.send('3');
    else if (buffer[start] !== MESSAGE) return;
    else if (buffer[start + 1] === EVENT) this.onPush(buffer, start, end);
    else if (buffer[start + 1] === ACK) this.#answer(buffer, start, end);
  };

  #answer(buffer: Buffer, start: number, end: number): void {
    const text = this.#waiting.size > 0 ? buffer.toString('utf8', start + 2 + this.#prefix.length, end) : '';
    const id = Number.parseInt(text, 10);
    const resolve = this.#waiting.get(id);
    if (!resolve) {
      this.onAck(buffer, start, end);
      return;
    }
    this.#waiting.delete(id);
    const [answer] = JSON.parse(text.slice(text.indexOf('['))) as [Record<string, unknown>];
    resolve(answer);
  }
}

/** Whether an answer `43<id>[{"ok":true…` says yes. */
export function isOk(buffer: Buffer, start: number, end: number): boolean {
  return buffer.toString('latin1', start, Math.min(end, start + 40)).includes('"ok":true');
}
