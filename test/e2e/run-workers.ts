import { type ClientRequest, request } from 'node:http';
import { join } from 'node:path';
import type { Part } from '../../src/protocol/parts.js';
import type { Run } from '../../src/protocol/runs.js';
import type { Assignment, PushReply } from '../../src/protocol/worker.js';
import { type Ack, connect, Refused, type TestClient } from '../support/client.js';
import { type Forwarder, startForwarder } from '../support/forwarder.js';
import { type Owned, own } from '../support/owned.js';
import { DEV_WORKER_KEY } from '../support/tokens.js';
import { call, sleep } from './run-stage.js';

/** A worker over a bare socket.io-client. It does only what the test says. */
export class BareWorker {
  readonly assigned: Assignment[] = [];
  readonly cancelled = new Set<string>();

  private constructor(readonly client: TestClient) {
    client.socket.prependAny((name: string, push: Assignment & { run: string }) => {
      if (name === 'run.assigned') this.assigned.push(push);
      else if (name === 'run.cancelled') this.cancelled.add(push.run);
    });
  }

  static async connect(url: string, options: { key?: string; models?: string[]; capacity?: number } = {}) {
    const worker = new BareWorker(
      await connect({ url, namespace: '/worker', auth: { key: options.key ?? DEV_WORKER_KEY } }),
    );
    const { capacity = 1, models = ['score'] } = options;
    if (capacity > 0) await worker.ask('worker.ready', { models, capacity });
    return worker;
  }

  /** The assignment of a run, past or future; of any run where none is named. */
  assignment(run?: string, timeoutMs = 15_000): Promise<Assignment> {
    return this.client.until(
      () => this.assigned.find((one) => run === undefined || one.run.id === run),
      `an assignment of ${run ?? 'any run'}`,
      timeoutMs,
    );
  }

  /** @throws Refused */
  async ask<T = unknown>(command: string, payload: unknown): Promise<T> {
    const ack: Ack = await this.client.ask(command, payload);
    if (!ack.ok) throw new Refused(ack.error);
    return ack as T;
  }

  push({ run, fence }: Assignment, n: number, parts: Part[]): Promise<PushReply> {
    return this.ask('run.push', { run: run.id, fence, n, parts });
  }

  finish({ run, fence }: Assignment, n?: number): Promise<{ run: Run }> {
    return this.ask('run.finish', { run: run.id, fence, ...(n === undefined ? {} : { n }) });
  }

  close(): void {
    this.client.close();
  }
}

/** Sends `parts[from..to)` one by one with a pause between. */
export async function play(
  worker: BareWorker,
  assignment: Assignment,
  parts: Part[],
  range: { from?: number; to?: number; pauseMs?: number } = {},
): Promise<PushReply> {
  const { from = 0, to = parts.length, pauseMs = 10 } = range;
  let reply: PushReply = { committed: 0, cancelled: false };
  for (let n = from; n < to; n++) {
    reply = await worker.push(assignment, n, parts.slice(n, n + 1));
    await sleep(pauseMs);
  }
  return reply;
}

/** A worker over HTTP. */
export class HttpWorker {
  constructor(
    readonly url: string,
    readonly key = DEV_WORKER_KEY,
  ) {}

  async claim(waitMs = 10_000, models = ['score']): Promise<Assignment | undefined> {
    const { status, body } = await call(this.url, this.key, 'POST', '/v1/worker/claims', { models, waitMs });
    if (status === 204) return undefined;
    if (status !== 200) throw new Error(`claim: ${status} ${JSON.stringify(body)}`);
    return body as Assignment;
  }

  /** A body of lines that stays open. */
  open({ run, fence }: Assignment): ChunkBody {
    return new ChunkBody(this.url, this.key, run.id, fence);
  }

  post({ run, fence }: Assignment, verb: 'heartbeat' | 'finish' | 'fail', body: unknown = {}) {
    const path = `/v1/worker/runs/${run.id}/${verb}`;
    const sent = verb === 'heartbeat' ? undefined : body;
    return call(this.url, this.key, 'POST', path, sent, { 'tutti-fence': String(fence) });
  }
}

export class ChunkBody {
  /** May come before the body ends. */
  readonly answer: Promise<{ status: number; body: unknown }>;
  answered = false;
  readonly #request: ClientRequest;

  constructor(url: string, key: string, run: string, fence: number) {
    this.#request = request(`${url}/v1/worker/runs/${run}/chunks`, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${key}`,
        'content-type': 'application/x-ndjson',
        'tutti-fence': String(fence),
        'transfer-encoding': 'chunked',
      },
    });
    this.answer = new Promise((resolve, reject) => {
      this.#request.on('error', reject);
      this.#request.on('response', async (response) => {
        let text = '';
        for await (const chunk of response) text += chunk;
        this.answered = true;
        resolve({ status: response.statusCode ?? 0, body: text === '' ? undefined : JSON.parse(text) });
      });
    });
    this.answer.catch(() => undefined);
    this.#request.flushHeaders();
  }

  send(n: number, part: Part): void {
    this.#request.write(`${JSON.stringify({ n, part })}\n`);
  }

  /** Any bytes, to cut lines where a test likes. */
  write(bytes: string | Uint8Array): void {
    this.#request.write(bytes);
  }

  end(): Promise<{ status: number; body: unknown }> {
    this.#request.end();
    return this.answer;
  }

  destroy(): void {
    this.#request.destroy();
  }
}

export interface WorkerProcessOptions {
  url: string;
  label: string;
  count: number;
  everyMs: number;
  key?: string;
  model?: string;
  capacity?: number;
}

/** A process with the worker SDK, that plays `scoreOf(`<label>-<attempt>`)`. */
export function startWorkerProcess(options: WorkerProcessOptions): Owned {
  const { PATH = '', HOME = '' } = process.env;
  return own(process.execPath, ['--import', 'tsx', join(import.meta.dirname, 'run-worker-process.ts')], {
    cwd: join(import.meta.dirname, '../..'),
    env: { PATH, HOME, RUN_WORKER: JSON.stringify({ key: DEV_WORKER_KEY, model: 'score', capacity: 1, ...options }) },
  });
}

export interface Balancer extends Forwarder {
  /** Where new connections go. */
  point(port: number): void;
}

/** One address in front of several gateways, for clients that know only one. */
export async function startBalancer(port: number): Promise<Balancer> {
  let target = port;
  const forwarder = await startForwarder(() => target);
  return {
    ...forwarder,
    point(next) {
      target = next;
    },
  };
}
