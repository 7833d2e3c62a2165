import { io, type Socket } from 'socket.io-client';
import type { z } from 'zod';
import { type Answer, backoffMs, Refusal, Unanswered } from '../protocol/refusal.js';
import type {
  Assignment,
  WorkerCommandName,
  WorkerCommandReply,
  WorkerPushes,
  workerCommands,
} from '../protocol/worker.js';

/** What a command takes, before the server parses it. */
export type WorkerCommandInput<N extends WorkerCommandName> = z.input<(typeof workerCommands)[N]['payload']>;

const ANSWER_MS = 15_000;

export interface WorkerSocketOptions {
  url: string;
  key: string;
  assigned(assignment: Assignment): void;
  cancelled(run: string): void;
  /** The key was refused; there will be no connection. */
  refused(error: Refusal): void;
}

/** The connection of a worker; it comes back by itself, with jitter, after every kind of loss. */
export class WorkerSocket {
  readonly #socket: Socket;
  readonly #connected = new Set<() => void>();
  #attempt = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #closed = false;

  constructor(options: WorkerSocketOptions) {
    this.#socket = io(`${options.url.replace(/\/$/, '')}/worker`, {
      transports: ['websocket'],
      reconnection: false,
      forceNew: true,
      autoConnect: false,
      auth: { key: options.key },
    });
    this.#socket.on('connect', () => {
      this.#attempt = 0;
      for (const listener of [...this.#connected]) listener();
    });
    this.#socket.on('run.assigned', (push: WorkerPushes['run.assigned']) => options.assigned(push));
    this.#socket.on('run.cancelled', (push: WorkerPushes['run.cancelled']) => options.cancelled(push.run));
    this.#socket.on('disconnect', () => this.#again());
    this.#socket.on('connect_error', (error) => {
      const refusal = Refusal.fromConnectError(error);
      if (!refusal || refusal.retryable) this.#again(refusal?.retryAfterMs);
      else {
        this.close();
        options.refused(refusal);
      }
    });
  }

  get connected(): boolean {
    return this.#socket.connected;
  }

  open(): void {
    this.#socket.connect();
  }

  /** Called at every connection, in the order of the calls. @returns the call that removes the listener. */
  onConnected(listener: () => void): () => void {
    this.#connected.add(listener);
    return () => this.#connected.delete(listener);
  }

  /** @throws Refusal where the server said no; Unanswered where nobody knows what became of it. */
  request<N extends WorkerCommandName>(name: N, payload: WorkerCommandInput<N>): Promise<WorkerCommandReply<N>> {
    if (!this.#socket.connected) return Promise.reject(new Unanswered('not connected'));
    return new Promise((resolve, reject) => {
      this.#socket
        .timeout(ANSWER_MS)
        .emit(name, payload, (error: Error | null, answer: Answer<WorkerCommandReply<N>>) => {
          if (error) reject(new Unanswered(error.message));
          else if (answer.ok) resolve(answer);
          else reject(new Refusal(answer.error));
        });
    });
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#socket.disconnect();
  }

  #again(afterMs = 0): void {
    if (this.#closed) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#socket.connect(), Math.max(afterMs, backoffMs(this.#attempt++, 200, 5000)));
  }
}
