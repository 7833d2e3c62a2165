import { setTimeout as sleep } from 'node:timers/promises';
import type { Socket } from 'socket.io-client';
import type { Assignment } from '../../../src/protocol/worker.js';
import { monotonic } from '../history.js';
import type { LoadConfig, LoadTenant } from './config.js';
import type { Ledger } from './ledger.js';
import { type Answer, Link } from './link.js';
import { RunWork } from './run-work.js';

export interface WorkerOptions {
  name: string;
  tenant: LoadTenant;
  gateways: LoadConfig['gateways'];
  random: () => number;
  answerMs: number;
}

/** What the workers of a load serve. */
export const MODEL = 'score';
const CAPACITY = 4;
const PAUSE_MS = 60;

/**
 * A worker over a bare socket. It keeps what it made and sends what is not known to be stored again, under the same fence, at
 * whichever gateway takes it in next.
 */
export class SocketWorker {
  readonly #options: WorkerOptions;
  readonly #ledger: Ledger;
  readonly #link: Link;
  readonly #held = new Map<string, RunWork>();
  readonly #unanswered = new Set<{ since: number; settle: (answer: Answer | undefined) => void }>();
  #waiting: (() => void)[] = [];
  #dead = false;

  constructor(ledger: Ledger, options: WorkerOptions) {
    this.#ledger = ledger;
    this.#options = options;
    this.#link = new Link({
      gateways: options.gateways,
      random: options.random,
      namespace: '/worker',
      auth: { key: options.tenant.workerKey },
      raw: ledger.searchFor(options.tenant.id, options.name, 'worker socket'),
      up: (socket) => this.#up(socket),
      down: () => this.#settleAll(),
    });
  }

  get link(): Link {
    return this.#link;
  }

  get name(): string {
    return this.#options.name;
  }

  /** Runs in hand. */
  get busy(): number {
    return this.#held.size;
  }

  open(): void {
    this.#link.open();
  }

  /** Gives up a connection with a command that waits too long. `now` is ms as of `Date.now()`. */
  tick(now: number): void {
    const oldest = this.#unanswered.values().next().value;
    if (oldest && now - oldest.since > this.#options.answerMs) this.#link.lose('no answer');
  }

  close(): void {
    this.#dead = true;
    this.#link.close();
    this.#settleAll();
    this.#wake();
  }

  /**
   * A second connection with the same claim: the same parts under the same fence may be sent there too, and change nothing; a
   * fence that nobody was given may not. @returns whether both were tried and answered in time.
   */
  async twice(): Promise<boolean> {
    const work = [...this.#held.values()].find(({ made, over }) => made > 0 && !over);
    if (!work) return false;
    const { gateways, random, tenant, name, answerMs } = this.#options;
    let link: Link | undefined;
    const late = sleep(answerMs, undefined, { ref: false });
    const connected = new Promise<Socket>((resolve) => {
      link = new Link({
        gateways,
        random,
        namespace: '/worker',
        auth: { key: tenant.workerKey },
        raw: this.#ledger.searchFor(tenant.id, name, 'worker socket'),
        up: resolve,
        down: () => link?.close(),
      });
      link.open();
    });
    try {
      const socket = await Promise.race([connected, late]);
      const push = (fence: number) => {
        const parts = work.parts.slice(0, work.made);
        const answered = new Promise<Answer>((resolve) => {
          socket?.emit('run.push', { run: work.run, fence, n: 0, parts }, resolve);
        });
        return Promise.race([answered, late]);
      };
      let sentAt = monotonic();
      const same = await push(work.fence);
      if (!same?.ok) return false; // the claim is over, and the next fence may be another's
      work.accepted(sentAt, same);
      sentAt = monotonic();
      const other = await push(work.fence + 1);
      if (other?.ok) this.#ledger.write(['wrote', sentAt, name, work.run, work.fence + 1]);
      else if (other?.error.code === 'fenced') this.#ledger.counts.fenced++;
      return other !== undefined;
    } finally {
      link?.close();
    }
  }

  #up(socket: Socket): void {
    socket.on('run.assigned', (assignment: Assignment) => this.#take(assignment));
    socket.on('run.cancelled', ({ run }: { run: string }) => {
      const work = this.#held.get(run);
      if (work) work.over = true;
    });
    // Whoever waited sends first; so a worker that slept past its lease tries to write before it is told.
    this.#wake();
    setImmediate(async () => {
      await Promise.all([...this.#held.values()].map((work) => this.#renew(work)));
      await this.#ask('worker.ready', { models: [MODEL], capacity: CAPACITY });
    });
  }

  #take(assignment: Assignment): void {
    const before = this.#held.get(assignment.run.id);
    if (before) before.over = true;
    const work = new RunWork(this.#ledger, this.#options.name, this.#options.tenant.canary, assignment);
    this.#held.set(work.run, work);
    void this.#perform(work).finally(() => {
      if (this.#held.get(work.run) === work) this.#held.delete(work.run);
    });
  }

  async #renew(work: RunWork): Promise<void> {
    const sentAt = monotonic();
    const answer = await this.#ask('run.heartbeat', { run: work.run, fence: work.fence });
    if (answer?.ok) work.accepted(sentAt, answer);
    else if (answer && !answer.error.retryable) work.over = true;
  }

  async #perform(work: RunWork): Promise<void> {
    const { random } = this.#options;
    while (!work.over && !this.#dead) {
      if (work.sent === work.made && !work.complete) {
        await sleep(PAUSE_MS * (0.5 + random()));
        work.make(1 + Math.floor(random() * 4));
        continue;
      }
      const sentAt = monotonic();
      const ends = work.sent === work.made;
      const answer = ends ? await this.#finish(work) : await this.#push(work);
      if (answer?.ok) {
        work.accepted(sentAt, answer);
        if (ends) work.over = true;
      } else if (answer) {
        await sleep(work.refused(answer.error));
      } else {
        await this.#connected();
        work.sent = work.committed;
      }
    }
  }

  async #push(work: RunWork): Promise<Answer | undefined> {
    const { run, fence, sent: n, made } = work;
    const parts = work.parts.slice(n, made);
    const answer = await this.#ask('run.push', { run, fence, n, parts });
    if (answer?.ok) work.sent = made;
    return answer;
  }

  #finish({ run, fence, made }: RunWork): Promise<Answer | undefined> {
    return this.#ask('run.finish', { run, fence, n: made });
  }

  /** The answer, or `undefined` where the connection went or is not there. */
  #ask(command: string, payload: unknown): Promise<Answer | undefined> {
    const socket = this.#link.socket;
    if (!socket) return Promise.resolve(undefined);
    return new Promise((resolve) => {
      const one = { since: Date.now(), settle: resolve };
      this.#unanswered.add(one);
      socket.emit(command, payload, (answer: Answer) => {
        if (this.#unanswered.delete(one)) resolve(answer);
      });
    });
  }

  #settleAll(): void {
    for (const { settle } of this.#unanswered) settle(undefined);
    this.#unanswered.clear();
  }

  #connected(): Promise<void> {
    if (this.#link.socket || this.#dead) return Promise.resolve();
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}
