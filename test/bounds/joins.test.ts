import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { memoryProbe } from '../../bench/support/measure.js';
import type { CommandReply } from '../../src/protocol/commands.js';
import type { Part } from '../../src/protocol/parts.js';
import type { Pushes } from '../../src/protocol/pushes.js';
import { isTerminal, type Run, type RunState } from '../../src/protocol/runs.js';
import type { Assignment } from '../../src/protocol/worker.js';
import { Listener, newClient } from '../client/stage.js';
import { BareWorker } from '../e2e/run-workers.js';
import { connect, type Push, type TestClient } from '../support/client.js';
import { eventually } from '../support/eventually.js';
import { startForwarder } from '../support/forwarder.js';
import { devToken } from '../support/tokens.js';
import { Bounded } from './stage.js';

/* Joining rooms whose live runs have said far more than a socket may have waiting. */

const MiB = 1024 * 1024;
const RUNS = 8;
/** About 500 KiB of text in all, and more than twice that as it was sent. */
const PARTS = 5000;

let on: Bounded;
/** One room for all tests here, because filling it takes a while. */
let choir: Choir;
beforeAll(async () => {
  on = await Bounded.start({
    TUTTI_SOCKET_MAX_BACKPRESSURE_BYTES: String(MiB),
    TUTTI_WORKER_COMMANDS_PER_SECOND: '1000',
    TUTTI_COMMANDS_PER_SECOND: '1000',
    TUTTI_RUN_OUTPUT_MAX_BYTES: String(MiB),
    TUTTI_RUN_UNCOMMITTED_MAX_BYTES: String(4 * MiB),
    TUTTI_RUN_UNCOMMITTED_TOTAL_BYTES: String(64 * MiB),
    TUTTI_SOCKET_PING_TIMEOUT_MS: '60000',
    TUTTI_SOCKET_PING_INTERVAL_MS: '60000',
    NODE_OPTIONS: memoryProbe,
  });
  choir = await Choir.start('choir', RUNS);
  await choir.sayAll(PARTS);
}, 60_000);
afterEach(() => on.undo.all());
afterAll(async () => {
  choir?.close();
  await on?.stop();
});

/** Part `n` of what a worker says under a fence. */
const partOf = (fence: number, n: number): Part =>
  n % 1000 === 999
    ? { type: 'data-note', data: `${fence}.${n}` }
    : { type: 'text-delta', id: 't', delta: `${fence}.${n} ${'wörter '.repeat(11)}😀 ` };
const partsOf = (fence: number, from: number, to: number): Part[] =>
  Array.from({ length: to - from }, (_, i) => partOf(fence, from + i));
const textOf = (parts: readonly Part[]): string =>
  parts.map((part) => (part.type === 'text-delta' ? part.delta : JSON.stringify(part))).join('');
const bytesOf = (value: unknown): number => Buffer.byteLength(JSON.stringify(value));

/** Runs that a test streams, and all that was said in each attempt. */
class Choir {
  readonly runs: Assignment[] = [];
  /** Of each attempt: under which fence, and how many parts. */
  readonly said = new Map<string, { fence: number; length: number; text: string }>();

  private constructor(
    readonly room: string,
    readonly worker: BareWorker,
    readonly starter: TestClient,
  ) {}

  static async start(room: string, runs: number): Promise<Choir> {
    const worker = await BareWorker.connect(on.url, { models: [room], capacity: 50 });
    const made = new Choir(room, worker, await connect({ url: on.url, token: await devToken() }));
    for (let i = 0; i < runs; i++) await made.begin();
    return made;
  }

  async begin(): Promise<Assignment> {
    const { run } = await this.starter.call('run.create', { room: this.room, model: this.room, input: null });
    return this.#add(await this.worker.assignment(run.id));
  }

  /** The next `count` parts of one run. */
  async say(run: Assignment, count: number): Promise<void> {
    const said = this.of(run);
    const from = said.length;
    const parts = partsOf(run.fence, from, from + count);
    said.length += count;
    said.text += textOf(parts);
    await this.worker.push(run, from, parts);
  }

  async sayAll(count: number): Promise<void> {
    for (let at = 0; at < count; at += 500) await Promise.all(this.runs.map((run) => this.say(run, 500)));
  }

  /** The worker gives the run back; who takes it starts over. */
  async again(run: Assignment): Promise<Assignment> {
    const error = { code: 'oom', message: 'Out of memory.' };
    await this.worker.ask('run.fail', { run: run.run.id, fence: run.fence, error, retryable: true });
    const given = await this.worker.client.until(
      () => this.worker.assigned.find((one) => one.run.id === run.run.id && one.attempt > run.attempt),
      'the next attempt',
    );
    this.runs.splice(this.runs.indexOf(run), 1);
    return this.#add(given);
  }

  async finish(run: Assignment): Promise<void> {
    await this.worker.finish(run, this.of(run).length);
    this.runs.splice(this.runs.indexOf(run), 1);
  }

  /** The run at a place in the order of their beginnings. */
  at(index: number): Assignment {
    const run = this.runs[index];
    if (!run) throw new Error('too few runs');
    return run;
  }

  close(): void {
    this.worker.close();
    this.starter.close();
  }

  of({ run, attempt }: Pick<Assignment, 'run' | 'attempt'>) {
    const said = this.said.get(`${run.id} ${attempt}`);
    if (!said) throw new Error('a run that nobody began');
    return said;
  }

  #add(run: Assignment): Assignment {
    this.runs.push(run);
    this.said.set(`${run.run.id} ${run.attempt}`, { fence: run.fence, length: 0, text: '' });
    return run;
  }
}

interface Seen {
  attempt: number;
  next: number;
  text: string;
  state: RunState;
}

/** A bare client that believes its pushes alone, and complains of what a reader must never see. */
class Follower {
  readonly runs = new Map<string, Seen>();
  readonly faults: string[] = [];
  /** Output that it was given. */
  bytes = 0;
  joins = 0;
  resets = 0;
  #reading = false;

  constructor(readonly client: TestClient) {
    client.socket.prependAny((name: string, data: unknown) => {
      const push = { name, data } as Push;
      if (push.name === 'run.chunk') this.#chunk(push.data);
      else if (push.name === 'run.state') this.#state(push.data);
      else if (push.name === 'run.reset') this.#reset(push.data);
    });
  }

  static async start(url = on.url): Promise<Follower> {
    return new Follower(on.undo.add(await connect({ url, token: await devToken() }), (one) => one.close()));
  }

  /** Resolves with the size of the reply, in bytes. */
  join(from: 'latest' | 'start' = 'latest'): Promise<number> {
    return new Promise((resolve, reject) => {
      this.client.socket.emit('room.join', { room: choir.room, from }, (answer: CommandReply<'room.join'>) => {
        if (!('runs' in answer)) return reject(new Error(JSON.stringify(answer)));
        this.joins += 1;
        this.#reading = true;
        this.runs.clear();
        for (const { id, attempt, next, output, state } of answer.runs) {
          this.bytes += bytesOf(output);
          this.runs.set(id, { attempt, next, text: textOf(output), state });
          this.#judge(id);
        }
        resolve(bytesOf(answer));
      });
    });
  }

  leave(): Promise<void> {
    return new Promise((resolve) => {
      this.client.socket.emit('room.leave', { room: choir.room }, () => {
        this.#reading = false;
        resolve();
      });
    });
  }

  /** Has everything that was said so far, with the numbers the worker gave it. */
  has(run: Assignment): boolean {
    const said = choir.of(run);
    const seen = this.runs.get(run.run.id);
    return seen?.attempt === run.attempt && seen.next === said.length && seen.text === said.text;
  }

  async hasAll(timeoutMs = 30_000): Promise<void> {
    const all = () => this.faults.length > 0 || choir.runs.every((run) => this.has(run));
    await this.client.until(
      all,
      `the output of all runs, at ${[...this.runs.values()].map(({ next }) => next)}`,
      timeoutMs,
    );
    expect(this.faults).toEqual([]);
    expect(this.client.disconnects).toEqual([]);
  }

  #judge(id: string): void {
    const seen = this.runs.get(id);
    const said = seen && choir.said.get(`${id} ${seen.attempt}`);
    // What nobody said yet is found by whoever waits for the whole.
    if (seen && said && !said.text.startsWith(seen.text)) this.faults.push(`${id} is no prefix at ${seen.next}`);
  }

  #chunk({ run, attempt, n, parts }: Pushes['run.chunk']): void {
    const seen = this.runs.get(run);
    this.bytes += bytesOf(parts);
    if (!this.#reading) this.faults.push('a chunk after the room was left');
    if (!seen) return void this.faults.push(`a chunk of ${run}, which nobody told of`);
    if (isTerminal(seen.state)) this.faults.push(`a chunk after the end of ${run}`);
    if (attempt !== seen.attempt) this.faults.push(`attempt ${attempt} of ${run} without a reset`);
    if (n !== seen.next) this.faults.push(`part ${n} of ${run} where ${seen.next} was due`);
    seen.next = n + parts.length;
    seen.text += textOf(parts);
    this.#judge(run);
  }

  #reset({ run, attempt }: Pushes['run.reset']): void {
    this.resets += 1;
    this.runs.set(run, { attempt, next: 0, text: '', state: 'queued' });
  }

  #state({ run, attempt, state, length }: Pushes['run.state']): void {
    const seen = this.runs.get(run) ?? { attempt, next: 0, text: '', state };
    if (attempt !== seen.attempt) this.faults.push(`${state} of attempt ${attempt} of ${run} without a reset`);
    if (isTerminal(state)) {
      const whole = choir.said.get(`${run} ${attempt}`);
      if (length !== seen.next || seen.text !== whole?.text)
        this.faults.push(`${run} ended with ${seen.next} of ${length} parts`);
    }
    this.runs.set(run, { ...seen, state });
  }
}

/** The address of a line that carries so many bytes a second. */
async function lineOf(bytesPerSecond: number): Promise<string> {
  const line = await startForwarder(() => on.gateway.port, { bytesPerSecond });
  return on.undo.add(line, (one) => one.close()).url;
}

/** Stops and resumes reading at the socket of the operating system. */
function tcp(client: TestClient): { pause(): void; resume(): void } {
  const { engine } = client.socket.io as unknown as { engine: { transport: { ws: { _socket: never } } } };
  return engine.transport.ws._socket;
}

const ofRun = (data: unknown): string => (data as { run: Run }).run.id;
const slowCloses = () => on.metric('tutti_slow_closes_total');

test('[RUN4] [SLOW1] a room with eight runs of 500 KiB: who joins gets all of it, folded, then live chunks', async () => {
  const said = choir.runs.reduce((sum, run) => sum + Buffer.byteLength(choir.of(run).text), 0);
  expect(said).toBeGreaterThan(RUNS * 450 * 1024);
  const follower = await Follower.start();
  expect(await follower.join()).toBeLessThan(300 * 1024);
  await follower.hasAll();
  expect(follower.bytes).toBeLessThan(1.1 * said);
  expect(follower.client.of('run.chunk').length).toBeLessThan(200);
  const first = choir.at(0);
  await choir.say(first, 3);
  const live = await follower.client.waitFor('run.chunk', ({ n }) => n === PARTS);
  expect(live.parts).toEqual(partsOf(first.fence, PARTS, PARTS + 3));
});

test('[RUN4] [SLOW1] the SDK shows all of it over a slow line, without joining twice', async () => {
  const client = on.undo.add(newClient(await lineOf(4 * MiB)), (one) => one.close());
  const listener = new Listener(client.join(choir.room, { from: 'latest' }));
  for (let i = 0; i < 20; i++) await choir.say(choir.at(0), 20);
  const whole = (run: Assignment) => textOf(listener.room.runs.output(run.run.id)) === choir.of(run).text;
  await eventually('the output of all runs', () => choir.runs.every(whole), 30_000);
  expect(choir.runs.map(({ run }) => listener.room.runs.get(run.id)?.next)).toEqual(
    choir.runs.map((run) => choir.of(run).length),
  );
  expect(listener.states.filter((status) => status === 'joined')).toHaveLength(1);
});

test('[RUN1] [SLOW1] who leaves, or joins again, before all of the output has come', async () => {
  const follower = await Follower.start(await lineOf(8 * MiB));
  tcp(follower.client).pause();
  const asked = [follower.join(), follower.join('start'), follower.leave(), follower.join()];
  await eventually('the room is joined', async () => (await on.metric('tutti_room_joins')) > 0);
  tcp(follower.client).resume();
  await asked[0];
  await Promise.all(choir.runs.map((run) => choir.say(run, 10)));
  await Promise.all(asked);
  await follower.hasAll();
  expect(follower.joins).toBe(3);
  await follower.leave();
  await choir.say(choir.at(0), 10);
  await follower.client.call('event.history', { room: choir.room, limit: 1 });
  expect(follower.faults).toEqual([]);
});

test('[SLOW1] [LIM6] readers that join and do not read cost a buffer each, however much their room has said', async () => {
  const readers = await Promise.all(Array.from({ length: 16 }, () => Follower.start()));
  const before = await on.resident();
  for (const { client } of readers) tcp(client).pause();
  const joined = readers.map((reader) => reader.join());
  await eventually('all have joined', async () => (await on.metric('tutti_room_joins')) >= readers.length);
  for (let i = 0; i < 10; i++) await choir.say(choir.at(0), 20);
  expect((await on.resident()) - before).toBeLessThan(readers.length * 2 * MiB);
  for (const { client } of readers) tcp(client).resume();
  await Promise.all(joined);
  for (const reader of readers) await reader.hasAll();
});

test('[RUN1] [RUN4] [SLOW1] a slow reader joins while output goes on, starts over, begins and ends: it is never cut off', async () => {
  const [follower, fast] = [await Follower.start(await lineOf(2 * MiB)), await Follower.start()];
  await fast.join();
  tcp(follower.client).pause();
  const joined = follower.join();
  const [grows, again, ends] = [choir.at(0), choir.at(1), choir.at(2)];
  for (let i = 0; i < 20; i++) await choir.say(grows, 20);
  tcp(follower.client).resume();
  await joined;
  const second = await choir.again(again);
  const fresh = await choir.begin();
  for (let i = 0; i < 10; i++) {
    await Promise.all([grows, second, fresh].map((run) => choir.say(run, 20)));
    if (i === 4) await choir.finish(ends);
  }
  await follower.hasAll();
  await fast.hasAll();
  expect([follower.resets, fast.resets]).toEqual([1, 1]);
  expect(follower.runs.get(ends.run.id)?.state).toBe('completed');
});

test('[RUN1] [SLOW1] [RES1] runs of 500 KiB that end reach a slow reader: what it was reading, events, streams, history', async () => {
  const before = await slowCloses();
  const url = await lineOf(4 * MiB);
  const headers = { authorization: `Bearer ${await devToken()}` };
  const long = choir.at(2);
  const stream = fetch(`${url}/v1/runs/${long.run.id}/stream`, { headers });
  const joining = await Follower.start(url);
  await joining.join();
  const { length } = choir.of(long);
  // One after another: several live events of this size at once are more than a slow reader's buffer.
  for (const { run } of [...choir.runs]) {
    await choir.finish(choir.at(0));
    await joining.client.waitFor('event', ({ type, data }) => type === 'run.completed' && ofRun(data) === run.id);
    await joining.client.until(() => joining.runs.get(run.id)?.state === 'completed', 'the end');
  }
  expect(joining.faults).toEqual([]);

  const follower = await Follower.start(url);
  await follower.join('start');
  const ended = () => follower.client.of('event').filter(({ type }) => type === 'run.completed');
  await follower.client.until(() => ended().length === RUNS + 1, 'every end', 30_000);
  for (const { data } of ended()) {
    const { run, message } = data as { run: Run; message: { parts: Part[] } };
    expect(textOf(message.parts) === choir.said.get(`${run.id} ${run.attempt}`)?.text).toBe(true);
  }
  let after = 0;
  for (let pages = 0; pages < 40; pages++) {
    const page = await follower.client.call('event.history', { room: choir.room, after });
    after = page.events.at(-1)?.seq ?? after;
    expect(bytesOf(page)).toBeLessThan(1.3 * MiB);
    if (page.events.length === 0) break;
  }
  expect(after).toBe(2 * (RUNS + 1));

  const output = await (await stream).text();
  expect(output.endsWith('data: [DONE]\n\n')).toBe(true);
  expect(output.split('\n').filter((line) => line.startsWith('id: '))).toHaveLength(length);
  const feed = await fetch(`${url}/v1/rooms/${choir.room}/stream?after=start`, { headers });
  const reader = feed.body?.getReader();
  let seen = '';
  const count = () => seen.split('"type":"run.completed"').length - 1;
  for (const decoder = new TextDecoder(); count() < RUNS + 1; ) {
    const next = await reader?.read();
    if (!next || next.done) break;
    seen += decoder.decode(next.value, { stream: true });
  }
  await reader?.cancel();
  expect(count()).toBe(RUNS + 1);
  expect([await slowCloses(), joining.client.disconnects, follower.client.disconnects]).toEqual([before, [], []]);
});
