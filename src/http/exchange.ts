import type { HttpRequest, HttpResponse } from 'uWebSockets.js';
import { STATUS_CODES } from 'node:http';

/** The client went away before its answer; nobody is left to be told. */
export class ClientGone extends Error {
  override readonly name = 'ClientGone';
}

/** What was asked, copied while the request still exists: uWS frees it at the first await. */
export interface RequestHead {
  readonly method: string;
  /** As it came, still percent-encoded, without the query. */
  readonly path: string;
  readonly query: string;
  readonly headers: ReadonlyMap<string, string>;
  /** Of all header names and values, in UTF-16 units. */
  readonly headerSize: number;
}

export function readHead(req: HttpRequest): RequestHead {
  const headers = new Map<string, string>();
  let headerSize = 0;
  req.forEach((name, value) => {
    headers.set(name, value);
    headerSize += name.length + value.length;
  });
  return { method: req.getCaseSensitiveMethod(), path: req.getUrl(), query: req.getQuery() ?? '', headers, headerSize };
}

type State =
  | 'open' // nothing was written
  | 'streaming' // the head was written, the body is still being written
  | 'done'
  | 'gone';

/**
 * One request and its answer. uWS ends the process when a response is touched after it ended or was aborted; this class
 * is the one place that touches it, and every call on a finished exchange does nothing.
 */
export class Exchange {
  readonly head: RequestHead;
  /** Status of the answer; 0 before it, 499 for a client that left before it. */
  status = 0;
  #state: State = 'open';
  #paused = false;
  #last = false;
  #bodyDone: boolean;
  readonly #res: HttpResponse;
  readonly #headers: [string, string][] = [];
  readonly #finished: (() => void)[] = [];
  #abort: AbortController | undefined;

  /** To be made before the handler of uWS returns. */
  constructor(res: HttpResponse, head: RequestHead) {
    this.#res = res;
    this.head = head;
    this.#bodyDone = head.method !== 'POST';
    res.onAborted(() => {
      if (this.#state === 'open') this.status = 499;
      this.#finish('gone');
    });
  }

  get open(): boolean {
    return this.#state === 'open';
  }

  get finished(): boolean {
    return this.#state === 'done' || this.#state === 'gone';
  }

  /** Aborted when the client leaves or the answer is complete. */
  get signal(): AbortSignal {
    this.#abort ??= new AbortController();
    if (this.finished) this.#abort.abort();
    return this.#abort.signal;
  }

  /** Called once, when the answer is complete or the client left; at once when that was before. */
  onFinished(listener: () => void): void {
    if (this.finished) listener();
    else this.#finished.push(listener);
  }

  /** A header of the answer, whatever the answer will be. */
  setHeader(name: string, value: string): void {
    this.#headers.push([name, value]);
  }

  /** No other request shall come over this connection: the client is told to make a new one. */
  lastOfConnection(): void {
    this.#last = true;
  }

  /** Hands over the body's chunks as copies; to be called before the handler of uWS returns. */
  onBody(listener: (chunk: Uint8Array, last: boolean) => void): void {
    this.#res.onData((chunk, last) => {
      this.#bodyDone ||= last;
      if (!this.finished) listener(new Uint8Array(chunk.slice(0)), last);
    });
  }

  /** Stops reading the body, which makes the client wait; uWS then runs no timeout on it. */
  pause(): void {
    if (this.finished || this.#paused) return;
    this.#paused = true;
    this.#res.pause();
  }

  resume(): void {
    if (this.finished || !this.#paused) return;
    this.#paused = false;
    this.#res.resume();
  }

  /** uWS drops a body that brings less than some 16 KB/s for 10 s; this starts the 10 s anew. */
  keepBodyAlive(): void {
    if (this.finished || this.#paused || this.#bodyDone) return;
    this.#res.pause();
    this.#res.resume();
  }

  /**
   * The whole answer. `body` of a HEAD request is measured and not sent. What is left of the request's body is discarded
   * by uWS: closing instead would reset the connection, and the client might never read the answer.
   */
  answer(status: number, headers: Record<string, string>, body: string | Uint8Array = ''): void {
    if (this.#state !== 'open') return;
    this.status = status;
    this.resume();
    const close = this.#last && this.#bodyDone;
    this.#res.cork(() => {
      this.#writeHead(status, headers);
      if (status === 204 || status === 304) this.#res.endWithoutBody(undefined, close);
      else if (this.head.method === 'HEAD') this.#res.endWithoutBody(Buffer.byteLength(body), close);
      else this.#res.end(body, close);
    });
    this.#finish('done');
  }

  /** Begins an answer that is written piece by piece. `writable` is called when a full socket takes more. */
  stream(status: number, headers: Record<string, string>, writable: () => void): void {
    if (this.#state !== 'open') return;
    this.status = status;
    this.#state = 'streaming';
    this.#res.onWritable(() => {
      if (!this.finished) writable();
      return true;
    });
    this.#res.cork(() => this.#writeHead(status, headers));
  }

  /** @returns `false` when the socket is full: what was given is kept and sent, but more should wait. */
  write(text: string): boolean {
    if (this.#state !== 'streaming' || text === '') return true;
    let accepted = true;
    this.#res.cork(() => {
      accepted = this.#res.write(text);
    });
    return accepted;
  }

  /** Completes a streamed answer. */
  end(): void {
    if (this.#state !== 'streaming') return;
    this.#res.cork(() => this.#res.end(''));
    this.#finish('done');
  }

  /** Cuts the connection; what is still buffered is lost. */
  kill(): void {
    if (this.finished) return;
    this.#res.close();
    this.#finish('gone');
  }

  #writeHead(status: number, headers: Record<string, string>): void {
    this.#res.writeStatus(`${status} ${STATUS_CODES[status] ?? ''}`);
    for (const [name, value] of this.#headers) this.#res.writeHeader(name, value);
    for (const [name, value] of Object.entries(headers)) this.#res.writeHeader(name, value);
  }

  #finish(state: 'done' | 'gone'): void {
    if (this.finished) return;
    this.#state = state;
    this.#abort?.abort();
    for (const listener of this.#finished.splice(0)) listener();
  }
}
