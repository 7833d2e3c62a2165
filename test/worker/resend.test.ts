import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Server, type Socket } from 'socket.io';
import { afterEach, expect, test } from 'vitest';
import type { Part } from '../../src/protocol/parts.js';
import { type Handler, type RunningWorker, runWorker } from '../../src/worker/index.js';
import { scoreOf } from '../e2e/run-score.js';
import { eventually } from '../support/eventually.js';

/*
 * The worker SDK against a gateway that answers as the test says: what a real one answers only in rare moments.
 */

type Push = { run: string; fence: number; n: number; parts: Part[] };
type Answer = Record<string, unknown> & { ok: boolean };

const refuse = (code: string, more: object = {}): Answer => ({
  ok: false,
  error: { code, message: code, retryable: false, ...more },
});

class Gateway {
  readonly pushes: Push[] = [];
  readonly ends: { name: string; payload: Record<string, unknown> }[] = [];
  /** What it took of the run, in order of the numbers. */
  readonly taken: Part[] = [];
  connections = 0;
  /** Answers a push; `undefined` takes it as a gateway does. */
  onPush: (push: Push) => Answer | 'silence' | undefined = () => undefined;
  onEnd: (name: string) => Answer | undefined = () => undefined;
  cancelled = false;
  #socket: Socket | undefined;
  readonly #http = createServer();
  readonly #io = new Server(this.#http, { transports: ['websocket'] });

  static async start(): Promise<Gateway> {
    const gateway = new Gateway();
    await new Promise<void>((resolve) => gateway.#http.listen(0, '127.0.0.1', resolve));
    return gateway;
  }

  private constructor() {
    this.#io.of('/worker').on('connection', (socket) => {
      this.connections++;
      this.#socket = socket;
      socket.on('worker.ready', (_payload, ack) => ack({ ok: true }));
      socket.on('run.heartbeat', (_payload, ack) => ack(this.#standing()));
      socket.on('run.push', (push: Push, ack) => {
        this.pushes.push(push);
        const answer = this.onPush(push) ?? this.#take(push);
        if (answer !== 'silence') ack(answer);
      });
      for (const name of ['run.finish', 'run.fail']) {
        socket.on(name, (payload, ack) => {
          this.ends.push({ name, payload });
          ack(this.onEnd(name) ?? { ok: true, run: {} });
        });
      }
    });
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#http.address() as AddressInfo).port}`;
  }

  async assign(committed = 0): Promise<void> {
    const socket = await eventually('a worker', () => this.#socket);
    const run = { id: 'r1', room: 'room', model: 'm', state: 'claimed', attempt: 1, createdAt: 0 };
    socket.emit('run.assigned', { run, input: {}, attempt: 1, fence: 7, leaseMs: 2000, committed });
  }

  push(name: string, payload: unknown): void {
    this.#socket?.emit(name, payload);
  }

  drop(): void {
    this.#socket?.conn.close();
  }

  close(): Promise<void> {
    return new Promise((resolve) => this.#io.close(() => resolve()));
  }

  #take({ n, parts }: Push): Answer {
    if (n > this.taken.length) return refuse('out_of_order', { expected: this.taken.length });
    this.taken.push(...parts.slice(this.taken.length - n));
    return this.#standing();
  }

  #standing(): Answer {
    return { ok: true, committed: this.taken.length, cancelled: this.cancelled };
  }
}

const open: { worker: RunningWorker; gateway: Gateway }[] = [];
afterEach(async () => {
  for (const { worker, gateway } of open.splice(0)) {
    await worker.stop(0);
    await gateway.close();
  }
});

async function stage(handle: Handler): Promise<Gateway> {
  const gateway = await Gateway.start();
  const worker = runWorker({ url: gateway.url, key: 'k', models: ['m'], capacity: 1, handle });
  open.push({ worker, gateway });
  return gateway;
}

const SCORE = scoreOf('sdk', 120);
const play = (everyMs: number, parts = SCORE): Handler =>
  async function* () {
    for (const part of parts) {
      yield part;
      await new Promise((wait) => setTimeout(wait, everyMs));
    }
  };
/** Until it is told to stop; says why. */
const endless = (told: (why: unknown) => void): Handler =>
  async function* (_assignment, { signal }) {
    try {
      for (let i = 0; ; i++) {
        yield { type: 'text-delta', id: 't', delta: `${i} ` };
        await new Promise((wait) => setTimeout(wait, 5));
      }
    } finally {
      told(signal.reason);
    }
  };
const finished = (gateway: Gateway) =>
  eventually('the end', () => gateway.ends.some((end) => end.name === 'run.finish'));
const expectWhole = (gateway: Gateway) => {
  expect(gateway.taken).toEqual(SCORE);
  expect(gateway.ends).toEqual([{ name: 'run.finish', payload: { run: 'r1', fence: 7, n: SCORE.length } }]);
};

test('[RUN1] a push that was lost: out_of_order says where to go on, and every part arrives once and in order', async () => {
  const gateway = await stage(play(2));
  let lost = 0;
  gateway.onPush = ({ n }) => {
    if (n === 0 || lost >= 3 || n < 10 * (lost + 1)) return undefined;
    lost++;
    return refuse('out_of_order', { expected: gateway.taken.length });
  };
  await gateway.assign();
  await finished(gateway);
  expect(lost).toBe(3);
  expectWhole(gateway);
  for (const push of gateway.pushes) expect(push.parts).toEqual(SCORE.slice(push.n, push.n + push.parts.length));
});

test('[RUN1] an answer that stays out: after a new connection it goes on from what is committed, under the same fence', async () => {
  const gateway = await stage(play(2));
  let dropped = false;
  gateway.onPush = ({ n }) => {
    if (n < 30 || dropped) return undefined;
    dropped = true;
    gateway.drop();
    return 'silence';
  };
  await gateway.assign();
  await finished(gateway);
  expect(gateway.connections).toBe(2);
  expectWhole(gateway);
});

test('[RUN1] a refusal that may be retried is: the parts wait and keep their order', async () => {
  const gateway = await stage(play(1));
  let refused = 0;
  gateway.onPush = ({ n }) =>
    n >= 20 && refused < 3 && ++refused ? refuse('overloaded', { retryable: true, retryAfterMs: 20 }) : undefined;
  await gateway.assign();
  await finished(gateway);
  expect(refused).toBe(3);
  expectWhole(gateway);
});

test('[RUN1] an end refused with out_of_order: what is missing is sent first', async () => {
  const gateway = await stage(play(0));
  let asked = 0;
  gateway.onEnd = (name) => {
    if (name !== 'run.finish' || asked++ > 0) return undefined;
    return refuse('out_of_order', { expected: gateway.taken.length });
  };
  await gateway.assign();
  await eventually('it ends', () => gateway.ends.length === 2);
  expect(gateway.taken).toEqual(SCORE);
});

test('[RUN2] a gateway that asks for what it had committed: the run fails, to be tried again', async () => {
  let told: unknown;
  const gateway = await stage(endless((why) => (told = why)));
  gateway.onPush = ({ n }) => (n >= 20 ? refuse('out_of_order', { expected: 3 }) : undefined);
  await gateway.assign();
  await eventually('it gives up', () => gateway.ends.length > 0 && told);
  expect(told).toBe('refused');
  expect(gateway.ends).toMatchObject([
    { name: 'run.fail', payload: { run: 'r1', fence: 7, retryable: true, error: { code: 'output_lost' } } },
  ]);
});

test('[RUN2] fenced: the handler is stopped at once and nothing more is sent, not even an end', async () => {
  let told: unknown;
  const gateway = await stage(endless((why) => (told = why)));
  gateway.onPush = ({ n }) => (n >= 20 ? refuse('fenced') : undefined);
  await gateway.assign();
  await eventually('it stops', () => told);
  expect(told).toBe('fenced');
  const { length } = gateway.pushes;
  await new Promise((wait) => setTimeout(wait, 700)); // longer than a heartbeat of this lease
  expect(gateway.pushes.length).toBe(length);
  expect(gateway.ends).toEqual([]);
});

test.each(['push', 'answer'] as const)(
  '[RUN3] cancelled, told by a %s: the handler is stopped and nothing follows',
  async (by) => {
    let told: unknown;
    const gateway = await stage(endless((why) => (told = why)));
    await gateway.assign();
    await eventually('it streams', () => gateway.taken.length > 10);
    if (by === 'push') gateway.push('run.cancelled', { run: 'r1' });
    else gateway.cancelled = true;
    await eventually('it stops', () => told);
    expect(told).toBe('cancelled');
    expect(gateway.ends).toEqual([]);
  },
);

test('[RUN1] a handler that is faster than the gateway is held back, and goes on where the gateway does', async () => {
  let made = 0;
  const large = 'x'.repeat(8 * 1024);
  const gateway = await stage(async (_assignment, { push }) => {
    for (; made < 100; made++) await push({ type: 'text-delta', id: 't', delta: large });
  });
  let open = false;
  gateway.onPush = () => (open ? undefined : refuse('overloaded', { retryable: true, retryAfterMs: 20 }));
  await gateway.assign();
  await eventually('it pushes', () => gateway.pushes.length > 3);
  expect(made).toBeLessThan(30);
  open = true;
  await finished(gateway);
  expect(gateway.taken).toHaveLength(100);
});
