import { connect, type Socket } from 'node:net';

/*
 * A WebSocket client that costs next to nothing, so that what is measured is the server: one buffer to read into for
 * all sockets, frames walked in place, nothing decoded unless somebody asks.
 */

/** Gets the payload of a message as `buffer[start, end)`, valid only during the call. */
export type OnMessage = (buffer: Buffer, start: number, end: number) => void;

const inbox = Buffer.allocUnsafeSlow(512 * 1024);
const NOTHING = Buffer.alloc(0);
/** A masking key of zeros leaves the payload as it is. */
const MASKED = 0x80;

/** One text message as a client sends it. */
export function frame(text: string): Buffer {
  const length = Buffer.byteLength(text);
  const extended = length < 126 ? 0 : length < 65_536 ? 2 : 8;
  const bytes = Buffer.alloc(2 + extended + 4 + length);
  bytes[0] = 0x81;
  if (extended === 0) bytes[1] = MASKED | length;
  else if (extended === 2) {
    bytes[1] = MASKED | 126;
    bytes.writeUInt16BE(length, 2);
  } else {
    bytes[1] = MASKED | 127;
    bytes.writeBigUInt64BE(BigInt(length), 2);
  }
  bytes.write(text, 2 + extended + 4);
  return bytes;
}

export class Wire {
  onMessage: OnMessage = () => undefined;
  onClose: () => void = () => undefined;
  readonly #socket: Socket;
  /** The beginning of a frame whose end has not arrived. */
  #rest: Buffer | undefined;
  readonly #outgoing: Buffer[] = [];
  #opened: (() => void) | undefined;
  #failed: (error: Error) => void = () => undefined;

  private constructor(port: number, path: string, silenceMs: number) {
    const callback = (bytes: number) => {
      this.#read(inbox.subarray(0, bytes));
      return true;
    };
    this.#socket = connect({ port, host: '127.0.0.1', noDelay: true, onread: { buffer: inbox, callback } });
    this.closeAfter(silenceMs);
    this.#socket.on('timeout', () => this.#socket.destroy());
    this.#socket.on('error', (error) => this.#failed(error));
    this.#socket.on('close', () => {
      this.#failed(new Error('closed'));
      this.onClose();
    });
    this.#socket.write(
      `GET ${path} HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n` +
        'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n',
    );
  }

  /**
   * `onMessage` is there before the first message can be. `silenceMs` is as in {@link closeAfter}, from the first moment on.
   * @throws Error where the upgrade is refused.
   */
  static open(port: number, path: string, onMessage?: OnMessage, silenceMs = 0): Promise<Wire> {
    return new Promise((resolve, reject) => {
      const wire = new Wire(port, path, silenceMs);
      if (onMessage) wire.onMessage = onMessage;
      wire.#opened = () => resolve(wire);
      wire.#failed = reject;
    });
  }

  /** What is sent in one go, also by several calls while one chunk is read, leaves in one write. */
  send(...texts: string[]): void {
    if (this.#outgoing.length === 0) queueMicrotask(() => this.#socket.write(Buffer.concat(this.#outgoing.splice(0))));
    for (const text of texts) this.#outgoing.push(frame(text));
  }

  /** Closes where nothing arrives for so long, in ms; 0: waits for ever. */
  closeAfter(silenceMs: number): void {
    this.#socket.setTimeout(silenceMs);
  }

  /** Reads nothing any more. */
  stall(): void {
    this.#socket.pause();
  }

  close(): void {
    this.#socket.destroy();
  }

  #read(chunk: Buffer): void {
    const bytes = this.#rest ? Buffer.concat([this.#rest, chunk]) : chunk;
    this.#rest = undefined;
    let at = 0;
    if (this.#opened) {
      const end = bytes.indexOf('\r\n\r\n');
      if (end >= 0) at = end + 4;
      else {
        this.#rest = Buffer.from(bytes);
        return;
      }
      if (!bytes.toString('latin1', 0, 12).startsWith('HTTP/1.1 101')) {
        this.#failed(new Error(`refused: ${bytes.toString('latin1', 0, 200)}`));
        return;
      }
      this.#opened();
      this.#opened = undefined;
      if (at === bytes.length) return;
      // Whoever waits for the opening has a turn before the first message.
      this.#rest = Buffer.from(bytes.subarray(at));
      setImmediate(() => this.#read(NOTHING));
      return;
    }
    while (at + 2 <= bytes.length) {
      const short = (bytes[at + 1] ?? 0) & 0x7f;
      const header = short < 126 ? 2 : short === 126 ? 4 : 10;
      if (at + header > bytes.length) break;
      const length =
        short < 126 ? short : short === 126 ? bytes.readUInt16BE(at + 2) : Number(bytes.readBigUInt64BE(at + 2));
      const start = at + header;
      if (start + length > bytes.length) break;
      at = start + length;
      this.onMessage(bytes, start, at);
    }
    if (at < bytes.length) this.#rest = Buffer.from(bytes.subarray(at));
  }
}
