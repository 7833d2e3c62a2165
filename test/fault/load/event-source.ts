import { type ClientRequest, get, type IncomingMessage } from 'node:http';

export interface SourceEvent {
  id: string | undefined;
  event: string | undefined;
  data: string | undefined;
}

export interface SourceOptions {
  url: string;
  token: string;
  lastId: string | undefined;
  opened(): void;
  /** In the order they came; only whole ones. */
  event(event: SourceEvent): void;
  /** Bytes as text, with the end of what came before, so that a word cut in two is seen. */
  raw(text: string): void;
  /** Called once, also where it was never opened. `status` is the answer's, 0 without one. */
  ended(why: string, status: number): void;
}

const OVERLAP = 128;
/** Streams send a comment every 15 s. */
const SILENCE_MS = 35_000;

/** One request of server-sent events on a connection of its own, by the rules of the format alone. */
export class EventSource {
  readonly #request: ClientRequest;
  readonly #options: SourceOptions;
  #rest = '';
  #tail = '';
  #over = false;

  constructor(options: SourceOptions) {
    this.#options = options;
    this.#request = get(options.url, {
      agent: false,
      timeout: SILENCE_MS,
      headers: {
        authorization: `Bearer ${options.token}`,
        accept: 'text/event-stream',
        ...(options.lastId === undefined ? {} : { 'last-event-id': options.lastId }),
      },
    });
    this.#request.on('timeout', () => this.#request.destroy(new Error('silent')));
    this.#request.on('error', (error) => this.#end(error.message, 0));
    this.#request.on('response', (response) => this.#answered(response));
  }

  /** The TCP connection is gone. */
  cut(): void {
    this.#request.destroy(new Error('cut'));
  }

  close(): void {
    this.#over = true;
    this.#request.destroy();
  }

  #answered(response: IncomingMessage): void {
    const status = response.statusCode ?? 0;
    response.setEncoding('utf8');
    response.on('error', (error) => this.#end(error.message, status));
    response.on('close', () => this.#end('closed', status));
    if (status !== 200) {
      response.on('data', (text: string) => this.#options.raw(text));
      return;
    }
    this.#options.opened();
    response.on('data', (text: string) => this.#take(text));
  }

  #take(text: string): void {
    if (this.#over) return;
    this.#options.raw(this.#tail + text);
    this.#tail = text.slice(-OVERLAP);
    const blocks = (this.#rest + text).split('\n\n');
    this.#rest = blocks.pop() ?? '';
    for (const block of blocks) this.#block(block);
  }

  #block(block: string): void {
    const found: SourceEvent = { id: undefined, event: undefined, data: undefined };
    for (const line of block.split('\n')) {
      if (line.startsWith('id: ')) found.id = line.slice(4);
      else if (line.startsWith('event: ')) found.event = line.slice(7);
      else if (line.startsWith('data: ')) found.data = line.slice(6);
    }
    if (found.id !== undefined || found.data !== undefined) this.#options.event(found);
  }

  #end(why: string, status: number): void {
    if (this.#over) return;
    this.#over = true;
    this.#request.destroy();
    this.#options.ended(why, status);
  }
}
