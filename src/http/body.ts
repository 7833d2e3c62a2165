import { TuttiError } from '../errors.js';
import { ClientGone, type Exchange } from './exchange.js';

/** Bytes of a body that may wait in memory before its client is made to wait. */
const HIGH_WATER = 64 * 1024;

type Waiter = { resolve: (chunk: Uint8Array | undefined) => void; reject: (gone: Error) => void };

/** A request body, read at the pace of whoever takes it. One reader at a time. */
export class Body {
  readonly #exchange: Exchange;
  readonly #chunks: Uint8Array[] = [];
  #queued = 0;
  #ended = false;
  #waiter: Waiter | undefined;

  /** To be made before the handler of uWS returns. */
  constructor(exchange: Exchange) {
    this.#exchange = exchange;
    exchange.onBody((chunk, last) => this.#arrived(chunk, last));
    exchange.onFinished(() => this.#waiter?.reject(new ClientGone()));
  }

  /** The next bytes, or `undefined` at the body's end. @throws ClientGone when the exchange is over. */
  next(): Promise<Uint8Array | undefined> {
    const chunk = this.#chunks.shift();
    if (chunk) {
      this.#queued -= chunk.byteLength;
      if (this.#queued < HIGH_WATER / 2) this.#exchange.resume();
      return Promise.resolve(chunk);
    }
    if (this.#ended) return Promise.resolve(undefined);
    if (this.#exchange.finished) return Promise.reject(new ClientGone());
    return new Promise((resolve, reject) => {
      this.#waiter = { resolve, reject };
    });
  }

  /** All of it as text. @throws TuttiError `payload_too_large`, `bad_request` where it is not UTF-8. */
  async text(maxBytes: number): Promise<string> {
    const tooLarge = () => new TuttiError('payload_too_large', `The body is larger than ${maxBytes} bytes.`);
    if (Number(this.#exchange.head.headers.get('content-length') ?? 0) > maxBytes) throw tooLarge();
    const chunks: Uint8Array[] = [];
    let size = 0;
    for (let chunk = await this.next(); chunk; chunk = await this.next()) {
      size += chunk.byteLength;
      if (size > maxBytes) throw tooLarge();
      chunks.push(chunk);
    }
    return decodeUtf8(chunks.length === 1 && chunks[0] ? chunks[0] : Buffer.concat(chunks));
  }

  #arrived(chunk: Uint8Array, last: boolean): void {
    this.#ended = last;
    const waiter = this.#waiter;
    if (waiter && (chunk.byteLength > 0 || last)) {
      this.#waiter = undefined;
      waiter.resolve(chunk.byteLength > 0 ? chunk : undefined);
      return;
    }
    if (chunk.byteLength === 0) return;
    this.#chunks.push(chunk);
    this.#queued += chunk.byteLength;
    if (this.#queued > HIGH_WATER && !last) this.#exchange.pause();
  }
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** @throws TuttiError `bad_request` */
export function decodeUtf8(bytes: Uint8Array): string {
  try {
    return utf8.decode(bytes);
  } catch {
    throw new TuttiError('bad_request', 'The body is not UTF-8.');
  }
}

/** @throws TuttiError `bad_request` */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new TuttiError('bad_request', 'The body is not JSON.');
  }
}
