import type { Part } from '../src/protocol/parts.js';
import { Session } from '../test/support/session.js';
import { DEV_WORKER_KEY } from '../test/support/tokens.js';
import { Wire } from '../test/support/wire.js';
import { each, pace, sleep } from './support/measure.js';
import { alternate, quantile, report } from './support/report.js';
import { onStage, openSession, openSessions, type Stage } from './support/stage.js';

const RUNS = 200;
const PER_SECOND = 50;
const VIEWERS = 5;
const WORKERS = 10;
const SECONDS = 3;
const ROUNDS = 3;
/** What the worker SDK keeps unanswered of one run; parts that come meanwhile go with the next push. */
const IN_FLIGHT = 3;

/** A run as its worker sees it. */
class Output {
  #n = 0;
  #unanswered = 0;
  #parts: Part[] = [];

  constructor(private readonly send: (n: number, parts: Part[]) => void) {}

  add(part: Part): void {
    this.#parts.push(part);
    this.#pump();
  }

  answered(): void {
    this.#unanswered -= 1;
    this.#pump();
  }

  #pump(): void {
    if (this.#parts.length === 0 || this.#unanswered >= IN_FLIGHT) return;
    this.#unanswered += 1;
    this.send(this.#n, this.#parts);
    this.#n += this.#parts.length;
    this.#parts = [];
  }
}

const DELTA = '"delta":"';
const partAt = (sent: number): Part => ({ type: 'text-delta', id: 't', delta: `${sent.toFixed(2)} token ` });

/** What the viewers saw: all of them count frames; one of each run reads what is in them, which costs this process a multiple. */
class Arrivals {
  took: number[] = [];

  note(buffer: Buffer, start: number, end: number): void {
    const now = performance.now();
    const text = buffer.toString('latin1', start, end);
    for (let at = text.indexOf(DELTA); at >= 0; at = text.indexOf(DELTA, at + 1)) {
      this.took.push(now - Number.parseFloat(text.slice(at + DELTA.length, at + DELTA.length + 16)));
    }
  }
}

/** From a worker's send of a part to its arrival at each of five viewers, 200 runs at 50 parts a second each. */
export async function run(): Promise<void> {
  await onStage({ redis: false }, async (stage) => {
    const arrivals = new Arrivals();
    const outputs = await startRuns(stage, arrivals);
    const raw = await startRaw(stage, arrivals);
    const measured = (to: readonly { add(part: Part): void }[]) => async () => {
      arrivals.took = [];
      await pace(RUNS * PER_SECOND, SECONDS, (i) => to[i % RUNS]?.add(partAt(performance.now())));
      const expected = RUNS * PER_SECOND * SECONDS;
      for (let waited = 0; arrivals.took.length < expected && waited < 10_000; waited += 10) await sleep(10);
      if (arrivals.took.length < expected) throw new Error(`${arrivals.took.length} of ${expected} parts arrived`);
      return { p50: quantile(arrivals.took, 0.5), p99: quantile(arrivals.took, 0.99) };
    };
    const rounds = await alternate(ROUNDS, measured(outputs), measured(raw));
    const pick = (q: 'p50' | 'p99') => ({
      ours: rounds.ours.map((round) => round[q]),
      floor: rounds.floor.map((round) => round[q]),
    });
    report(`runs: ${RUNS} runs × ${PER_SECOND} parts/s × ${VIEWERS} viewers, from worker to viewer`, [
      { what: 'p50', unit: 'ms', compare: 'difference', ...pick('p50'), aim: '≤ 3 ms over' },
      { what: 'p99', unit: 'ms', compare: 'difference', ...pick('p99') },
    ]);
  });
}

async function startRuns(stage: Stage, arrivals: Arrivals): Promise<Output[]> {
  const gateway = await stage.gateway();
  const viewers = await openSessions(gateway, RUNS * VIEWERS, 'viewer');
  await each(
    viewers.length,
    50,
    (i) => viewers[i]?.call('room.join', { room: `run-${i % RUNS}` }) ?? Promise.resolve({}),
  );
  for (const viewer of viewers.slice(0, RUNS))
    viewer.onPush = (buffer, start, end) => arrivals.note(buffer, start, end);
  const workers = await each(WORKERS, WORKERS, () =>
    Session.open({ port: gateway.port, auth: { key: DEV_WORKER_KEY }, namespace: '/worker' }),
  );
  const outputs: Output[] = [];
  for (const worker of workers) {
    worker.onPush = (buffer, start, end) => {
      const text = buffer.toString('utf8', start, end);
      if (!text.startsWith('42/worker,["run.assigned",')) return;
      const [, { run, fence }] = JSON.parse(text.slice('42/worker,'.length)) as [
        string,
        { run: { id: string }; fence: number },
      ];
      const output: Output = new Output((n, parts) => {
        const payload = { run: run.id, fence, n, parts };
        void worker.call('run.push', payload).then(() => output.answered());
      });
      outputs.push(output);
    };
    await worker.call('worker.ready', { models: ['bench'], capacity: RUNS / WORKERS });
  }
  const asker = await openSession(gateway, 'asker');
  await each(RUNS, 10, (i) => asker.call('run.create', { room: `run-${i}`, model: 'bench', input: {} }));
  for (let waited = 0; outputs.length < RUNS; waited += 20) {
    if (waited > 20_000) throw new Error(`${outputs.length} of ${RUNS} runs were claimed`);
    await sleep(20);
  }
  return outputs;
}

async function startRaw(stage: Stage, arrivals: Arrivals): Promise<{ add(part: Part): void }[]> {
  const floor = await stage.floor('chunks');
  await each(RUNS * VIEWERS, 100, (i) =>
    Wire.open(floor.port, `/viewer?run-${i % RUNS}`, (buffer, start, end) => {
      if (i < RUNS) arrivals.note(buffer, start, end);
    }),
  );
  const workers = await each(WORKERS, WORKERS, () => Wire.open(floor.port, '/worker'));
  return Array.from({ length: RUNS }, (_, i) => {
    let n = 0;
    const worker = workers[i % WORKERS];
    return {
      add(part: Part) {
        worker?.send(
          `run-${i} 42["run.chunk",{"room":"run-${i}","run":"run-${i}","attempt":1,"n":${n++},"parts":[${JSON.stringify(part)}]}]`,
        );
      },
    };
  });
}
