import type { Exchange } from './exchange.js';

/** A comment this often keeps proxies from closing an idle stream, in ms. */
export const HEARTBEAT_MS = 15_000;
/** How long a reader should wait before it reconnects, in ms. */
export const RETRY_MS = 1_000;

const HEADERS = {
  'content-type': 'text/event-stream',
  'cache-control': 'no-cache',
  'x-accel-buffering': 'no',
};

/**
 * An answer of server-sent events. What a slow reader does not take waits in memory up to a limit; past it the
 * connection is cut, and the reader resumes with its `Last-Event-ID`.
 */
export class EventStream {
  readonly #exchange: Exchange;
  readonly #maxWaitingBytes: number;
  #waiting: string[] = [];
  #waitingBytes = 0;
  #full = false;
  readonly #drained: ((here: boolean) => void)[] = [];
  readonly #slow: () => void;

  /** `slow` is called when the reader is cut off for reading too slowly. */
  constructor(
    exchange: Exchange,
    options: { maxWaitingBytes: number; headers?: Record<string, string>; slow: () => void },
  ) {
    this.#exchange = exchange;
    this.#maxWaitingBytes = options.maxWaitingBytes;
    this.#slow = options.slow;
    exchange.stream(200, { ...HEADERS, ...options.headers }, () => this.#writable());
    const heartbeat = setInterval(() => {
      if (!this.#full) this.write(':\n\n');
    }, HEARTBEAT_MS);
    heartbeat.unref();
    exchange.onFinished(() => {
      clearInterval(heartbeat);
      this.#waiting = [];
      this.#waitingBytes = 0;
      for (const resolve of this.#drained.splice(0)) resolve(false);
    });
  }

  /** One or more whole events, as text. Of a stream that is over it is ignored. */
  write(events: string): void {
    if (this.#exchange.finished) return;
    if (!this.#full) {
      this.#full = !this.#exchange.write(events);
      return;
    }
    this.#waiting.push(events);
    this.#waitingBytes += Buffer.byteLength(events);
    if (this.#waitingBytes > this.#maxWaitingBytes) {
      this.#slow();
      this.#exchange.kill();
    }
  }

  /** Whether something waits. */
  get full(): boolean {
    return this.#full;
  }

  /** Resolves `true` once nothing waits, `false` when the reader is gone. */
  drained(): Promise<boolean> {
    if (this.#exchange.finished) return Promise.resolve(false);
    if (!this.#full) return Promise.resolve(true);
    return new Promise((resolve) => this.#drained.push(resolve));
  }

  /** Ends the stream after what was written. */
  end(): void {
    if (this.#waiting.length > 0) this.#exchange.write(this.#waiting.splice(0).join(''));
    this.#exchange.end();
  }

  /** uWS drains its own buffer only when something is written, so an empty queue writes a comment. */
  #writable(): void {
    const events = this.#waiting.length > 0 ? this.#waiting.splice(0).join('') : ':\n\n';
    this.#waitingBytes = 0;
    this.#full = !this.#exchange.write(events);
    if (!this.#full) for (const resolve of this.#drained.splice(0)) resolve(true);
  }
}

/** One event. `data` must be of one line, which JSON text is. */
export const sseEvent = (data: string, options: { id?: string; event?: string } = {}): string =>
  `${options.id === undefined ? '' : `id: ${options.id}\n`}${options.event === undefined ? '' : `event: ${options.event}\n`}data: ${data}\n\n`;

/** How long the reader is to wait before it reconnects, in ms. */
export const sseRetry = (ms: number): string => `retry: ${ms}\n\n`;
