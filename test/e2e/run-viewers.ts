import type { CommandReply } from '../../src/protocol/commands.js';
import { foldParts } from '../../src/protocol/fold.js';
import type { Part } from '../../src/protocol/parts.js';
import type { Pushes } from '../../src/protocol/pushes.js';
import { isTerminal, type RunState } from '../../src/protocol/runs.js';
import { connect, type Push, type TestClient } from '../support/client.js';

/** A run as a viewer knows it from its pushes alone. */
export interface Seen {
  attempt: number;
  next: number;
  parts: Part[];
  state: RunState;
  length: number | undefined;
}

/** What a run should say in an attempt; `undefined` where the test does not know. */
export type Score = (run: string, attempt: number) => Part[] | undefined;

interface FinalData {
  run: { id: string; state: RunState; length?: number };
  message: { role: string; parts: Part[] };
}
const FINAL = /^run\.(completed|failed|cancelled)$/;

/**
 * A bare socket.io-client in one room that believes only its pushes, and holds each of them against the score as it
 * arrives: output is at every moment a prefix of the worker's (RUN1), events have no gap (FEED1). What is wrong is kept in `faults`.
 */
export class RunViewer {
  readonly faults: string[] = [];
  readonly runs = new Map<string, Seen>();
  readonly events: Pushes['event'][] = [];
  readonly resets: Pushes['run.reset'][] = [];
  #position: { epoch: string; seq: number } | undefined;
  client: TestClient;

  private constructor(
    client: TestClient,
    readonly room: string,
    private readonly token: string,
    private readonly score: Score,
  ) {
    this.client = client;
  }

  static async join(url: string, options: { room: string; token: string; score?: Score }): Promise<RunViewer> {
    const client = await connect({ url, token: options.token });
    const viewer = new RunViewer(client, options.room, options.token, options.score ?? (() => undefined));
    await viewer.#join();
    return viewer;
  }

  /** To another gateway, as a client does whose own is gone: from the last position. */
  async moveTo(url: string): Promise<void> {
    this.client.close();
    this.client = await connect({ url, token: this.token });
    await this.#join();
  }

  /** The events of a run's end; there must be one. */
  finals(run: string): { type: string; data: FinalData }[] {
    return this.events
      .filter((event) => FINAL.test(event.type) && (event.data as FinalData).run.id === run)
      .map(({ type, data }) => ({ type, data: data as FinalData }));
  }

  /** Until this viewer has at least `count` parts of a run. */
  reaches(run: string, count: number, timeoutMs = 15_000): Promise<Seen> {
    return this.client.until(
      () => {
        const seen = this.runs.get(run);
        return seen && seen.next >= count && seen;
      },
      `part ${count} of ${run}`,
      timeoutMs,
    );
  }

  /** Until the run is over for this viewer, live and in the log. */
  async ended(run: string, timeoutMs = 20_000): Promise<{ type: string; data: FinalData }> {
    const final = await this.client.until(
      () => {
        const seen = this.runs.get(run);
        return (seen === undefined || isTerminal(seen.state)) && this.finals(run)[0];
      },
      `the end of ${run}`,
      timeoutMs,
    );
    const seen = this.runs.get(run);
    if (seen && JSON.stringify(foldParts(seen.parts)) !== JSON.stringify(final.data.message.parts)) {
      this.faults.push(`streamed output of ${run} is not its final message`);
    }
    return final;
  }

  close(): void {
    this.client.close();
  }

  /** In one turn of the loop from the answer to the pushes, as they stand on the wire. */
  #join(): Promise<void> {
    const { socket } = this.client;
    // Before TestClient's own listener, which wakes whoever waits for what is noted here.
    socket.prependAny((name: string, push: unknown) => this.#take({ name, data: push } as Push));
    const payload = { room: this.room, ...(this.#position ? { from: this.#position } : {}) };
    return new Promise((resolve, reject) => {
      socket.emit('room.join', payload, (answer: { ok: boolean } & CommandReply<'room.join'>) => {
        if (!answer.ok) return reject(new Error(JSON.stringify(answer)));
        if (this.#position && !answer.resumed) this.faults.push('was not resumed');
        this.#position = answer.position;
        this.runs.clear();
        for (const { id, attempt, next, output, state, length } of answer.runs) {
          this.runs.set(id, { attempt, next, parts: [...output], state, length });
          const due = this.score(id, attempt)?.slice(0, next);
          if (due && JSON.stringify(output) !== JSON.stringify(foldParts(due))) {
            this.faults.push(`${id} joined with output that is not the first ${next} parts, folded`);
          }
        }
        resolve();
      });
    });
  }

  #take(push: Push): void {
    if (push.name === 'event') this.#event(push.data);
    else if (push.name === 'run.state') this.#state(push.data);
    else if (push.name === 'run.chunk') this.#chunk(push.data);
    else if (push.name === 'run.reset') this.#reset(push.data);
    else if (push.name === 'room.resync') this.faults.push(`resync ${JSON.stringify(push.data)}`);
  }

  #event(push: Pushes['event']): void {
    const last = this.#position;
    if (last && (push.seq !== last.seq + 1 || push.epoch !== last.epoch)) {
      this.faults.push(`event ${push.seq} after ${last.seq}`);
    }
    this.#position = { epoch: push.epoch, seq: push.seq };
    if (FINAL.test(push.type) && this.finals((push.data as FinalData).run.id).length > 0) {
      this.faults.push(`second final event ${push.type}`);
    }
    this.events.push(push);
  }

  #chunk({ run, attempt, n, parts }: Pushes['run.chunk']): void {
    const seen = this.runs.get(run);
    if (!seen) return void this.faults.push(`a chunk of ${run}, which nobody told of`);
    if (isTerminal(seen.state)) this.faults.push(`a chunk after the end of ${run}`);
    if (attempt !== seen.attempt) return void this.faults.push(`attempt ${attempt} without a reset`);
    if (n !== seen.next) this.faults.push(`part ${n} where ${seen.next} was due`);
    const due = this.score(run, attempt)?.slice(n, n + parts.length);
    if (due && JSON.stringify(parts) !== JSON.stringify(due)) {
      this.faults.push(`parts from ${n} of attempt ${attempt}: ${JSON.stringify(parts).slice(0, 200)}`);
    }
    seen.parts.push(...parts);
    seen.next = n + parts.length;
  }

  #reset(push: Pushes['run.reset']): void {
    this.resets.push(push);
    const seen = this.runs.get(push.run);
    if (!seen) return void this.faults.push(`a reset of ${push.run}, which nobody told of`);
    if (isTerminal(seen.state)) this.faults.push(`a reset after the end of ${push.run}`);
    Object.assign(seen, { attempt: push.attempt, next: 0, parts: [], state: 'queued' });
  }

  #state({ run, state, attempt, length }: Pushes['run.state']): void {
    const seen = this.runs.get(run) ?? { attempt, next: 0, parts: [], state, length: undefined };
    if (this.runs.has(run) && isTerminal(seen.state)) this.faults.push(`${state} after the end of ${run}`);
    if (attempt !== seen.attempt) this.faults.push(`${state} of attempt ${attempt} without a reset`);
    Object.assign(seen, { state, length });
    this.runs.set(run, seen);
    if (isTerminal(state) && length !== undefined && length !== seen.next) {
      this.faults.push(`${run} has ${length} parts, this viewer ${seen.next}`);
    }
  }
}

interface StreamFrame {
  /** `attempt:n`; the parts that a gateway adds have none. */
  id: string | undefined;
  part: Part;
}

/**
 * `/v1/runs/:id/stream` read by a strict parser: comments, or an optional `id:` and one `data:` line; a part per event, numbers
 * without a gap, `[DONE]` last.
 */
export class RunStream {
  readonly frames: StreamFrame[] = [];
  readonly faults: string[] = [];
  done = false;
  attempt = 0;
  next = 0;
  /** Parts of the current attempt that this stream saw. */
  parts: Part[] = [];
  lastEventId: string | undefined;
  /** Settles when the connection is over, however it went. */
  readonly closed: Promise<void>;
  readonly #abort = new AbortController();
  readonly #waiting = new Set<() => void>();

  private constructor(
    readonly response: Response,
    lastEventId: string | undefined,
    abort: AbortController,
  ) {
    this.#abort = abort;
    this.lastEventId = lastEventId;
    const [attempt, n] = lastEventId?.split(':').map(Number) ?? [];
    this.attempt = attempt ?? 0;
    this.next = n === undefined ? 0 : n + 1;
    this.closed = this.#read().catch(() => undefined);
  }

  static async open(url: string, token: string, run: string, lastEventId?: string): Promise<RunStream> {
    const abort = new AbortController();
    const response = await fetch(`${url}/v1/runs/${run}/stream`, {
      headers: { authorization: `Bearer ${token}`, ...(lastEventId ? { 'last-event-id': lastEventId } : {}) },
      signal: abort.signal,
    });
    if (response.status !== 200) throw new Error(`${response.status}: ${await response.text()}`);
    return new RunStream(response, lastEventId, abort);
  }

  reaches(count: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const look = () => {
        if (this.next < count && !this.done) return;
        clearTimeout(timer);
        this.#waiting.delete(look);
        resolve();
      };
      const timer = setTimeout(() => reject(new Error(`the stream stands at ${this.next}, not ${count}`)), 15_000);
      this.#waiting.add(look);
      look();
    });
  }

  close(): void {
    this.#abort.abort();
  }

  async #read(): Promise<void> {
    const decoder = new TextDecoder('utf-8', { fatal: true });
    let rest = '';
    for await (const bytes of this.response.body ?? []) {
      const blocks = (rest + decoder.decode(bytes as Uint8Array, { stream: true })).split('\n\n');
      rest = blocks.pop() ?? '';
      for (const block of blocks) this.#block(block);
      for (const look of [...this.#waiting]) look();
    }
    if (rest !== '') this.faults.push(`ended inside ${rest}`);
  }

  #block(block: string): void {
    if (block === ':') return;
    if (this.done) return void this.faults.push(`after [DONE]: ${block}`);
    const found = /^(?:id: ([0-9]+:[0-9]+)\n)?data: (.+)$/.exec(block);
    if (!found?.[2]) return void this.faults.push(`not an event: ${block}`);
    if (found[2] === '[DONE]') {
      this.done = true;
      return;
    }
    const part = JSON.parse(found[2]) as Part;
    const id = found[1];
    this.frames.push({ id, part });
    if (part.type === 'data-tutti-reset') {
      this.parts = [];
      this.next = 0;
      this.attempt = (part.data as { attempt: number }).attempt;
      return;
    }
    if (id === undefined) return;
    this.lastEventId = id;
    const [attempt = 0, n = 0] = id.split(':').map(Number);
    if (this.attempt === 0) this.attempt = attempt;
    if (attempt !== this.attempt || n !== this.next) {
      this.faults.push(`${id} where ${this.attempt}:${this.next} was due`);
    }
    this.next = n + 1;
    this.parts.push(part);
  }
}
