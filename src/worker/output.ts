import type { Part } from '../protocol/parts.js';
import { backoffMs, Refusal } from '../protocol/refusal.js';
import type { RunError } from '../protocol/runs.js';
import type { Assignment, PushReply } from '../protocol/worker.js';
import type { WorkerCommandInput, WorkerSocket } from './socket.js';

const PUSH_MAX_PARTS = 200;
const PUSH_MAX_BYTES = 96 * 1024;
const IN_FLIGHT_MAX = 3;
/** Output kept until it is committed; past it `add` waits. */
const UNCOMMITTED_MAX_BYTES = 128 * 1024;
/** Output of a handler that does not wait for `add`, past which its run fails. */
const OVERFLOW_BYTES = 16 * 1024 * 1024;

interface Buffered {
  part: Part;
  bytes: number;
}

type Body<N extends 'run.finish' | 'run.fail'> = Omit<WorkerCommandInput<N>, 'run' | 'fence' | 'n'>;
/** How a worker ends a run. */
export type LastWord = { name: 'run.finish'; body: Body<'run.finish'> } | { name: 'run.fail'; body: Body<'run.fail'> };

/** Why a run's output need not, or may not, be sent any more. */
export type Stopped = 'cancelled' | 'fenced' | 'refused';

/** Refusals that say that the run is not, or no longer, this worker's. */
const LOST = ['fenced', 'not_found', 'forbidden'];

/**
 * The output of one claimed run. It keeps every part until it is committed and sends from there again, under the same
 * fence, when a gateway was lost or asks for an earlier number. A few pushes are under way at a time.
 */
export class RunOutput {
  readonly #socket: WorkerSocket;
  readonly #assignment: Assignment;
  readonly #stop: (why: Stopped) => void;
  readonly #buffer: Buffered[] = [];
  #base: number;
  #sent: number;
  #bytes = 0;
  #inFlight = 0;
  #failures = 0;
  /** Moves when sending starts again from an earlier number: answers to what was sent before say nothing then. */
  #round = 0;
  #ended = false;
  #paused = false;
  #waiters: (() => void)[] = [];
  #answeredAt = Date.now();
  readonly #beat: ReturnType<typeof setInterval>;
  readonly #unsubscribe: () => void;

  constructor(socket: WorkerSocket, assignment: Assignment, stop: (why: Stopped) => void) {
    this.#socket = socket;
    this.#assignment = assignment;
    this.#stop = stop;
    this.#base = assignment.committed;
    this.#sent = assignment.committed;
    this.#beat = setInterval(() => {
      if (socket.connected && Date.now() - this.#answeredAt >= assignment.leaseMs / 4) void this.renew();
    }, assignment.leaseMs / 5);
    this.#unsubscribe = socket.onConnected(() => this.#rewind(this.#base));
  }

  /**
   * Takes the next part; resolves when there is room for another. Never rejects: a handler that goes on without waiting
   * fails its run when too much is kept.
   */
  async add(part: Part): Promise<void> {
    if (this.#ended) return;
    const bytes = Buffer.byteLength(JSON.stringify(part));
    if (this.#bytes + bytes > OVERFLOW_BYTES) {
      const message = 'The handler pushes faster than its output can be committed; it has to await push().';
      this.#abandon({ code: 'output_overflow', message }, false);
      return;
    }
    this.#buffer.push({ part, bytes });
    this.#bytes += bytes;
    this.#pump();
    while (!this.#ended && this.#bytes > UNCOMMITTED_MAX_BYTES) await this.#progress();
  }

  /** Sends what is left, then the last word, until that is answered. @throws Refusal if it is refused for good. */
  async end(last: LastWord): Promise<void> {
    const { run, fence } = this.#assignment;
    for (let attempt = 0; !this.#ended; attempt++) {
      while (!this.#ended && this.#unanswered()) await this.#progress();
      if (this.#ended) return;
      try {
        const n = this.#next;
        if (last.name === 'run.finish') await this.#socket.request(last.name, { run: run.id, fence, n, ...last.body });
        else await this.#socket.request(last.name, { run: run.id, fence, ...last.body });
        this.close();
      } catch (error) {
        if (error instanceof Refusal && error.code === 'out_of_order') this.#rewind(error.expected ?? this.#base);
        else if (error instanceof Refusal && !error.retryable) this.#giveUp(error);
        else await this.#rest(attempt, error);
      }
    }
  }

  /** Shows the gateway that the run is in hand here; resolves when it knows. Never rejects. */
  async renew(): Promise<void> {
    if (this.#ended) return;
    try {
      const { run, fence } = this.#assignment;
      this.#answered(await this.#socket.request('run.heartbeat', { run: run.id, fence }));
      this.#wake();
    } catch (error) {
      if (error instanceof Refusal && !error.retryable) this.#giveUp(error);
    }
  }

  /** Nothing more is sent. */
  close(): void {
    if (this.#ended) return;
    this.#ended = true;
    clearInterval(this.#beat);
    this.#unsubscribe();
    this.#wake();
  }

  get #next(): number {
    return this.#base + this.#buffer.length;
  }

  /** Whether something was not sent yet, or was sent and not answered. */
  #unanswered(): boolean {
    return this.#sent < this.#next || this.#inFlight > 0;
  }

  #pump(): void {
    while (
      !this.#ended &&
      !this.#paused &&
      this.#socket.connected &&
      this.#inFlight < IN_FLIGHT_MAX &&
      this.#sent < this.#next
    ) {
      const parts: Part[] = [];
      let bytes = 0;
      for (const item of this.#buffer.slice(this.#sent - this.#base, this.#sent - this.#base + PUSH_MAX_PARTS)) {
        if (parts.length > 0 && bytes + item.bytes > PUSH_MAX_BYTES) break;
        parts.push(item.part);
        bytes += item.bytes;
      }
      const n = this.#sent;
      this.#sent += parts.length;
      void this.#push(n, parts, this.#round);
    }
  }

  async #push(n: number, parts: Part[], round: number): Promise<void> {
    const { run, fence } = this.#assignment;
    this.#inFlight++;
    try {
      const reply = await this.#socket.request('run.push', { run: run.id, fence, n, parts });
      this.#failures = 0;
      this.#answered(reply);
    } catch (error) {
      if (round === this.#round) await this.#refused(n, error);
    } finally {
      if (round === this.#round) this.#inFlight--;
      this.#pump();
      this.#wake();
    }
  }

  #answered({ committed, cancelled }: PushReply): void {
    this.#answeredAt = Date.now();
    const done = Math.min(Math.max(committed - this.#base, 0), this.#buffer.length);
    for (const item of this.#buffer.splice(0, done)) this.#bytes -= item.bytes;
    this.#base += done;
    this.#sent = Math.max(this.#sent, this.#base);
    if (cancelled) this.#stopped('cancelled');
  }

  async #refused(n: number, error: unknown): Promise<void> {
    if (!(error instanceof Refusal)) {
      // A new connection starts again from what is committed; so does an answer that stayed out on this one.
      if (this.#socket.connected) this.#rewind(this.#base);
      return;
    }
    if (error.code === 'out_of_order') this.#rewind(error.expected ?? this.#base);
    else if (!error.retryable) this.#giveUp(error);
    else {
      this.#rewind(n, false);
      this.#paused = true;
      await this.#rest(this.#failures++, error);
      this.#paused = false;
    }
  }

  #rewind(n: number, pump = true): void {
    if (n < this.#base) {
      // Those parts were committed and forgotten; a server that lost them has to begin again.
      this.#abandon({ code: 'output_lost', message: 'The server asks for output that it had committed.' }, true);
      return;
    }
    this.#round++;
    this.#inFlight = 0;
    this.#sent = Math.min(n, this.#next);
    if (pump) this.#pump();
    this.#wake();
  }

  #giveUp(error: Refusal): void {
    if (LOST.includes(error.code)) this.#stopped('fenced');
    else this.#abandon({ code: error.code, message: error.message }, false);
  }

  /** Ends a run that is still ours: its lease would live as long as our connection. */
  #abandon(error: RunError, retryable: boolean): void {
    if (this.#ended) return;
    console.error(`run ${this.#assignment.run.id}: ${error.code}: ${error.message}`);
    this.#stopped('refused');
    void this.#fail(error, retryable);
  }

  async #fail(error: RunError, retryable: boolean): Promise<void> {
    const { run, fence } = this.#assignment;
    for (let attempt = 0; this.#socket.connected; attempt++) {
      try {
        await this.#socket.request('run.fail', { run: run.id, fence, error, retryable });
        return;
      } catch (problem) {
        if (problem instanceof Refusal && !problem.retryable) return;
        await this.#rest(attempt, problem);
      }
    }
  }

  #stopped(why: Stopped): void {
    if (this.#ended) return;
    this.close();
    this.#stop(why);
  }

  #rest(attempt: number, error: unknown): Promise<void> {
    const asked = error instanceof Refusal ? (error.retryAfterMs ?? 0) : 0;
    return new Promise((resolve) => setTimeout(resolve, Math.max(asked, backoffMs(attempt, 100, 3000))));
  }

  #progress(): Promise<void> {
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  #wake(): void {
    for (const waiter of this.#waiters.splice(0)) waiter();
  }
}
