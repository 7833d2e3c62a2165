import type { Principal } from '../core/principal.js';
import type { Logger } from '../core/telemetry.js';
import { asTuttiError, type ErrorCode } from '../errors.js';
import { parse } from '../protocol/primitives.js';
import type { Run } from '../protocol/runs.js';
import {
  type Assignment,
  MAX_CLAIM_WAIT_MS,
  type PushReply,
  type WorkerCommandName,
  type WorkerCommandPayload,
  type WorkerPushes,
  workerCommands,
} from '../protocol/worker.js';
import { type Command, type Reply, replyJson } from './dispatch.js';
import type { Session } from './session.js';

/** What workers ask of runs. */
export interface WorkerRuns {
  claim(
    worker: Principal,
    body: { models: string[]; waitMs: number },
    signal: AbortSignal,
  ): Promise<Assignment | undefined>;
  push(worker: Principal, body: WorkerCommandPayload<'run.push'>): Promise<PushReply>;
  heartbeat(worker: Principal, body: WorkerCommandPayload<'run.heartbeat'>): Promise<PushReply>;
  finish(worker: Principal, body: WorkerCommandPayload<'run.finish'>): Promise<Run>;
  fail(worker: Principal, body: WorkerCommandPayload<'run.fail'>): Promise<Run>;
  onCancelled(runId: string, listener: () => void): () => void;
}

/** A run this connection works on. */
interface Held {
  fence: number;
  unlisten: () => void;
}

/** Answers to a worker after which the run is no longer its own. */
const LOST: readonly ErrorCode[] = ['fenced', 'not_found', 'forbidden', 'conflict'];
/** Pause after a claim that failed, in ms. */
const CLAIM_RETRY_MS = 500;

/**
 * A worker's place on this gateway: the runs it holds and the claims made for it. The connection keeps the
 * leases alive; when it ends they run out by themselves, so nothing here has to succeed for a run to be retried.
 */
export class WorkerSeat {
  readonly #held = new Map<string, Held>();
  #gone = false;
  #models: string[] = [];
  #capacity = 0;
  #waiting: AbortController | undefined;
  #claiming = false;

  constructor(
    private readonly runs: WorkerRuns,
    private readonly log: Logger,
  ) {}

  /** Takes up to `capacity` runs at a time from now on; 0 pauses, what is held stays held. */
  ready(session: Session, { models, capacity }: WorkerCommandPayload<'worker.ready'>): void {
    this.#models = models;
    this.#capacity = capacity;
    this.#waiting?.abort(); // a claim under way asks for what was wanted before
    void this.#claim(session);
  }

  /** The worker shows that it works on a run, perhaps one that it got over another connection. */
  hold(session: Session, run: string, fence: number): void {
    const held = this.#held.get(run);
    if (held) {
      held.fence = Math.max(held.fence, fence);
      return;
    }
    if (this.#gone) return;
    const unlisten = this.runs.onCancelled(run, () => this.#cancelled(session, run));
    this.#held.set(run, { fence, unlisten });
  }

  /** The run ended or belongs to another: makes room for the next. */
  drop(session: Session, run: string): void {
    this.#held.get(run)?.unlisten();
    if (this.#held.delete(run)) void this.#claim(session);
  }

  /** The connection proved alive: so are the leases of everything held. */
  async renew(session: Session): Promise<void> {
    const renewals = [...this.#held].map(async ([run, { fence }]) => {
      try {
        const { cancelled } = await this.runs.heartbeat(session.principal, { run, fence });
        if (cancelled) this.#cancelled(session, run);
      } catch (thrown) {
        this.lost(session, run, thrown);
      }
    });
    await Promise.all(renewals);
  }

  /** Drops a run if the refusal says that the worker has lost it. */
  lost(session: Session, run: string, thrown: unknown): void {
    if (LOST.includes(asTuttiError(thrown).code)) this.drop(session, run);
  }

  /** The connection is gone: no claim, no renewal. */
  close(): void {
    this.#gone = true;
    this.#waiting?.abort();
    for (const { unlisten } of this.#held.values()) unlisten();
    this.#held.clear();
  }

  #cancelled(session: Session, run: string): void {
    if (!this.#held.has(run)) return;
    pushToWorker(session, 'run.cancelled', { run });
    this.drop(session, run);
  }

  /** One claim at a time, while there is room. */
  async #claim(session: Session): Promise<void> {
    if (this.#claiming) return;
    this.#claiming = true;
    try {
      while (!this.#gone && session.state === 'active' && this.#held.size < this.#capacity) {
        this.#waiting = new AbortController();
        await this.#claimOne(session, this.#waiting.signal);
      }
    } finally {
      this.#claiming = false;
    }
  }

  /** Never rejects. */
  async #claimOne(session: Session, signal: AbortSignal): Promise<void> {
    const body = { models: this.#models, waitMs: MAX_CLAIM_WAIT_MS };
    try {
      const assignment = await this.runs.claim(session.principal, body, signal);
      if (assignment) await this.#assign(session, assignment);
    } catch (thrown) {
      if (signal.aborted) return;
      this.log.warn({ ...session.fields, err: thrown }, 'claim failed');
      await new Promise((resolve) => setTimeout(resolve, CLAIM_RETRY_MS).unref());
    }
  }

  async #assign(session: Session, assignment: Assignment): Promise<void> {
    const { run, fence } = assignment;
    if (session.state === 'active') {
      this.hold(session, run.id, fence);
      pushToWorker(session, 'run.assigned', assignment);
      return;
    }
    // Nobody is there to take it: give it back now instead of after its lease.
    const error = { code: 'worker_gone', message: 'The worker left before it got the run.' };
    await this.runs.fail(session.principal, { run: run.id, fence, error, retryable: true });
  }
}

function pushToWorker<N extends keyof WorkerPushes>(session: Session, name: N, push: WorkerPushes[N]): void {
  session.link.send(`42/worker,["${name}",${JSON.stringify(push)}]`);
}

type Handler<N extends WorkerCommandName> = (
  session: Session,
  payload: WorkerCommandPayload<N>,
  reply: Reply,
) => Promise<void> | void;

function handlersOf(
  runs: WorkerRuns,
  seatOf: (session: Session) => WorkerSeat,
): { [N in WorkerCommandName]: Handler<N> } {
  /** Does something to a run and keeps the seat's list of held runs true to the outcome. */
  async function onRun<T>(session: Session, run: string, act: () => Promise<T>): Promise<T> {
    try {
      return await act();
    } catch (thrown) {
      seatOf(session).lost(session, run, thrown);
      throw thrown;
    }
  }
  const working = async (session: Session, run: string, fence: number, act: () => Promise<PushReply>) => {
    const answer = await onRun(session, run, act);
    if (answer.cancelled) seatOf(session).drop(session, run);
    else seatOf(session).hold(session, run, fence);
    return replyJson(answer);
  };
  const ending = async (session: Session, id: string, act: () => Promise<Run>) => {
    const run = await onRun(session, id, act);
    seatOf(session).drop(session, id);
    return replyJson({ run });
  };

  return {
    'worker.ready': (session, payload, reply) => {
      reply('{}');
      seatOf(session).ready(session, payload);
    },
    'run.push': async (session, body, reply) =>
      reply(await working(session, body.run, body.fence, () => runs.push(session.principal, body))),
    'run.heartbeat': async (session, body, reply) =>
      reply(await working(session, body.run, body.fence, () => runs.heartbeat(session.principal, body))),
    'run.finish': async (session, body, reply) =>
      reply(await ending(session, body.run, () => runs.finish(session.principal, body))),
    'run.fail': async (session, body, reply) =>
      reply(await ending(session, body.run, () => runs.fail(session.principal, body))),
  };
}

/** The commands of namespace `/worker`. A command without a handler does not build. */
export function runCommands(
  runs: WorkerRuns,
  seatOf: (session: Session) => WorkerSeat,
): Record<WorkerCommandName, Command> {
  const handlers = handlersOf(runs, seatOf);
  const command =
    <N extends WorkerCommandName>(name: N): Command =>
    (session, payload, reply) =>
      handlers[name](session, parse(workerCommands[name].payload, payload) as WorkerCommandPayload<N>, reply);
  return {
    'worker.ready': command('worker.ready'),
    'run.push': command('run.push'),
    'run.heartbeat': command('run.heartbeat'),
    'run.finish': command('run.finish'),
    'run.fail': command('run.fail'),
  };
}
