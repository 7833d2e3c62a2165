import type { Principal } from '../../src/core/principal.js';
import type { Runs } from '../../src/core/runs.js';
import { TuttiError } from '../../src/errors.js';
import { foldParts } from '../../src/protocol/fold.js';
import type { Part } from '../../src/protocol/parts.js';
import type { Assignment } from '../../src/protocol/worker.js';
import type { SimGateway } from './simulation.js';
import type { VirtualClock } from './virtual-clock.js';

/** More parts than any worker says. */
const PARTS_MAX = 100;

/** Part `n` of what a worker says that holds a run under this fence: two workers never say the same. */
function partOf(fence: number, n: number): Part {
  if (n % 7 === 6) return { type: 'text-end', id: `${fence}.${n}` };
  if (n % 11 === 10) return { type: 'data-note', data: `${fence}.${n}` };
  if (n % 9 === 5) return { type: 'text-delta', id: 't', delta: n % 2 === 0 ? '' : `${fence}😀😀` };
  return { type: 'text-delta', id: 't', delta: `${fence}.${n} ` };
}

/** All that is said under one fence. */
interface Speech {
  parts: readonly Part[];
  /** The parts as JSON texts. */
  texts: readonly string[];
  /** The first parts of it folded, as JSON, by how many they are. */
  folded: Map<number, string>;
  /** The whole as {@link textOf} has it. */
  text: string;
}

const speeches = new Map<number, Speech>();

function speechOf(fence: number): Speech {
  let speech = speeches.get(fence);
  if (!speech) {
    const parts = Array.from({ length: PARTS_MAX }, (_, n) => partOf(fence, n));
    speech = { parts, texts: parts.map((part) => JSON.stringify(part)), folded: new Map(), text: textOf(parts) };
    speeches.set(fence, speech);
  }
  return speech;
}

/** Parts `from`… below `to` of what is said under a fence. */
export const partsOf = (fence: number, from: number, to: number): Part[] => speechOf(fence).parts.slice(from, to);

/** The same as JSON. */
export const jsonOf = (fence: number, from: number, to: number): string =>
  `[${speechOf(fence).texts.slice(from, to).join(',')}]`;

/** The first `length` parts that are said under a fence, folded, as JSON. */
export function foldedOf(fence: number, length: number): string {
  const { parts, folded } = speechOf(fence);
  const known = folded.get(length) ?? JSON.stringify(foldParts(parts.slice(0, length)));
  folded.set(length, known);
  return known;
}

/** Whether output begins what is said under a fence, however its deltas are cut. */
export const begins = (fence: number, output: readonly Part[]): boolean =>
  speechOf(fence).text.startsWith(textOf(output));

/** Output as a text that grows with it, however its deltas are cut. */
function textOf(parts: readonly Part[]): string {
  const texts = foldParts(parts).map((part) => (part.type === 'text-delta' ? part.delta : JSON.stringify(part)));
  return texts.join('\n');
}

/** What workers live in. */
export interface WorkerWorld {
  clock: VirtualClock;
  random: () => number;
  /** A gateway that a worker may connect to now. */
  gateway: () => SimGateway & { runs: Runs };
  problem: (text: string) => void;
}

const worker: Principal = { kind: 'worker', id: 'w', tenant: 't', capabilities: {} };
const LATE = Symbol('late');
const ANSWER_MS = 1500;
const IN_FLIGHT_MAX = 3;

/**
 * A worker as the protocol wants it: it keeps what is not committed, sends it again elsewhere under the same fence,
 * goes back to where it is told, and stops when it is fenced. It can die, and stand still for a while.
 */
export class SimWorker {
  alive = true;
  /** It does nothing before this moment. */
  frozenUntil = 0;
  /** Ends each run well, without a change of mind. */
  steady = false;
  #gateway: SimGateway & { runs: Runs };
  readonly #latencyMs: number;
  /** Behind a balancer: each request may go to another gateway, and nothing tells when one is lost. */
  readonly #balanced: boolean;

  constructor(readonly world: WorkerWorld) {
    this.#balanced = world.random() < 0.3;
    this.#gateway = world.gateway();
    this.#latencyMs = world.random() * 5;
    void this.#work();
  }

  /** Goes on at another gateway, without a word to the one before. */
  move(): void {
    this.#gateway = this.world.gateway();
  }

  async #work(): Promise<void> {
    while (this.alive) {
      await this.#breath(10);
      const given = await this.#ask((runs, signal) => runs.claim(worker, { models: ['m'], waitMs: 500 }, signal));
      if (given instanceof TuttiError || given === LATE) this.move();
      else if (given) await this.#compute(given);
    }
  }

  async #compute({ run: { id: run }, fence, committed, attempt, leaseMs }: Assignment): Promise<void> {
    const { random, problem } = this.world;
    const length = Math.floor(random() * random() * 60);
    const giveUpAt = !this.steady && random() < 0.1 ? Math.floor(random() * length) : -1;
    const hurry = random() < 0.3;
    let base = committed;
    let sent = committed;
    let inFlight = 0;
    let round = 0;
    let over = false;
    let idle = false;
    const rewind = (n: number) => {
      // Of another gateway than the last answer it may be old news.
      if (n < base && !this.#balanced)
        problem(`run ${run} attempt ${attempt}: asked for part ${n}, and ${base} are committed`);
      round += 1;
      inFlight = 0;
      sent = Math.min(sent, Math.max(base, n));
    };
    const refused = (answer: TuttiError | typeof LATE) => {
      if (answer === LATE) {
        this.move();
        rewind(base);
      } else if (answer.code === 'out_of_order') rewind(answer.expected ?? base);
      else if (answer.code === 'fenced' || answer.code === 'not_found') over = true;
      else {
        if (answer.code === 'draining' || random() < 0.2) this.move();
        rewind(base);
      }
    };
    const push = async (n: number, parts: Part[], of: number) => {
      const answer = await this.#ask((runs) => runs.push(worker, { run, fence, n, parts }));
      if (answer instanceof TuttiError || answer === LATE) {
        if (of === round) refused(answer);
        return;
      }
      if (of === round) inFlight -= 1;
      base = Math.max(base, answer.committed);
      sent = Math.max(sent, base);
      if (answer.cancelled) over = true;
    };
    let answeredAt = this.world.clock.now();
    const gateway = () => this.#gateway;
    for (let at = gateway(); !over; ) {
      await this.#breath(hurry && !idle ? 5 : 60);
      idle = false;
      if (!this.alive) return;
      if (this.#balanced) this.move();
      else if (at !== gateway()) {
        at = gateway();
        rewind(base);
      }
      if (giveUpAt >= 0 && sent >= giveUpAt) {
        const error = { code: 'oom', message: 'Out of memory.' };
        const answer = await this.#ask((runs) => runs.fail(worker, { run, fence, error, retryable: random() < 0.7 }));
        if (answer !== LATE && !(answer instanceof TuttiError)) return;
        refused(answer);
        continue;
      }
      if (sent < length && inFlight < (this.#balanced ? 1 : IN_FLIGHT_MAX)) {
        if (!this.steady && random() < 0.03) rewind(base);
        const n = sent;
        sent = Math.min(length, sent + 1 + Math.floor(random() * 4));
        inFlight += 1;
        answeredAt = this.world.clock.now();
        void push(n, partsOf(fence, n, sent), round);
      } else if (inFlight === 0 && sent >= length) {
        const answer = await this.#ask((runs) => runs.finish(worker, { run, fence, n: length }));
        if (answer !== LATE && !(answer instanceof TuttiError)) {
          const whole = answer.state !== 'completed' || answer.length === length;
          if (!whole) problem(`run ${run} attempt ${attempt} of ${length} parts completed with ${answer.length}`);
          return;
        }
        refused(answer);
      } else if (this.world.clock.now() - answeredAt > leaseMs / 4) {
        answeredAt = this.world.clock.now();
        const answer = await this.#ask((runs) => runs.heartbeat(worker, { run, fence }));
        if (answer instanceof TuttiError || answer === LATE) refused(answer);
        else if (answer.cancelled) over = true;
        else base = Math.max(base, answer.committed);
        sent = Math.max(sent, base);
      } else idle = true;
    }
  }

  /** A request where the worker is connected; what comes late or never counts as a lost connection. */
  async #ask<T>(work: (runs: Runs, signal: AbortSignal) => Promise<T>): Promise<T | TuttiError | typeof LATE> {
    const gateway = this.#gateway;
    const gone = new AbortController();
    const answer = gateway
      .request(this.#latencyMs, () => work(gateway.runs, gone.signal))
      .catch((problem) => {
        if (problem instanceof TuttiError) return problem;
        this.world.problem(String(problem?.stack ?? problem));
        return LATE;
      });
    const late = this.world.clock.sleep(ANSWER_MS).then((): typeof LATE => LATE);
    const result = await Promise.race([answer, late]);
    if (result === LATE) gateway.clock.soon(() => gone.abort());
    await this.#breath(0);
    return this.alive ? result : new Promise(() => {});
  }

  async #breath(ms: number): Promise<void> {
    const { clock, random } = this.world;
    if (ms > 0) await clock.sleep(random() * ms);
    while (clock.now() < this.frozenUntil) await clock.sleep(this.frozenUntil - clock.now());
  }
}
