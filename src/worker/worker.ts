import type { Part } from '../protocol/parts.js';
import { Refusal } from '../protocol/refusal.js';
import type { Usage } from '../protocol/runs.js';
import type { Assignment } from '../protocol/worker.js';
import { RunOutput } from './output.js';
import { WorkerSocket } from './socket.js';

/** What a handler returns at the end. `meta` (at most 4 KiB of JSON) is stored with the finished message. */
export interface Outcome {
  usage?: Usage;
  meta?: unknown;
}

export interface RunContext {
  /** Aborted when the run was cancelled, given to another worker or refused: stop, nothing more is wanted. */
  signal: AbortSignal;
  /** Pushes one part; resolves when there is room for another, so awaiting it bounds memory. */
  push(part: Part): Promise<void>;
}

// biome-ignore lint/suspicious/noConfusingVoidType: a handler without an outcome just ends.
export type HandlerResult = Outcome | void;
/** Computes one run: a generator of parts, or a function that pushes them. What it throws fails the run. */
export type Handler = (
  assignment: Assignment,
  context: RunContext,
) => AsyncGenerator<Part, HandlerResult> | Promise<HandlerResult>;

export interface WorkerOptions {
  /** Where the gateway is. */
  url: string;
  /** An API key of a worker. */
  key: string;
  models: string[];
  /** Runs at the same time. */
  capacity: number;
  handle: Handler;
}

/** Thrown by a handler to say what failed; `retryable` lets another attempt be made. */
export class RunFailure extends Error {
  override readonly name = 'RunFailure';

  constructor(
    readonly code: string,
    message: string,
    readonly retryable = false,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

export interface RunningWorker {
  /** Resolves after {@link stop}; rejects with the Refusal if the key is refused. */
  readonly done: Promise<void>;
  /** Takes no more runs, lets those in hand end for up to `graceMs`, then closes. */
  stop(graceMs?: number): Promise<void>;
}

/**
 * Serves runs until stopped. Output is kept until the server committed it and sent again under the same fence after a
 * lost connection, so a restarted gateway costs nothing; a run that was cancelled or lost aborts its handler.
 */
export function runWorker(options: WorkerOptions): RunningWorker {
  const active = new Map<string, { abort: AbortController; output: RunOutput; ended: Promise<void> }>();
  let stopping = false;
  let finished: () => void = () => undefined;
  let failed: (error: Refusal) => void = () => undefined;
  const done = new Promise<void>((resolve, reject) => {
    finished = resolve;
    failed = reject;
  });
  done.catch(() => undefined);

  const socket = new WorkerSocket({
    url: options.url,
    key: options.key,
    assigned: (assignment) => void start(assignment),
    cancelled: (run) => active.get(run)?.abort.abort('cancelled'),
    refused: (error) => failed(error),
  });

  const announce = () => {
    const capacity = stopping ? 0 : options.capacity;
    socket.request('worker.ready', { models: options.models, capacity }).catch((error: unknown) => {
      if (error instanceof Refusal && !error.retryable) failed(error);
      else if (socket.connected) setTimeout(announce, 1000).unref();
    });
  };
  socket.onConnected(() => {
    // A gateway that does not know yet what is in hand would give more than there is room for.
    void Promise.all([...active.values()].map(({ output }) => output.renew())).then(announce);
  });

  function start(assignment: Assignment): void {
    const id = assignment.run.id;
    active.get(id)?.abort.abort('fenced');
    const abort = new AbortController();
    const output = new RunOutput(socket, assignment, (why) => abort.abort(why));
    abort.signal.addEventListener('abort', () => output.close(), { once: true });
    const entry = { abort, output, ended: Promise.resolve() };
    active.set(id, entry);
    entry.ended = serve(assignment, options.handle, output, abort.signal).finally(() => {
      if (active.get(id) === entry) active.delete(id);
    });
  }

  socket.open();
  return {
    done,
    async stop(graceMs = 10_000) {
      stopping = true;
      if (socket.connected) announce();
      let timer: ReturnType<typeof setTimeout> | undefined;
      const grace = new Promise((resolve) => {
        timer = setTimeout(resolve, graceMs);
      });
      await Promise.race([Promise.all([...active.values()].map((one) => one.ended)), grace]);
      clearTimeout(timer);
      for (const one of active.values()) one.abort.abort('stopped');
      socket.close();
      finished();
    },
  };
}

/** One run from its assignment to its last word. Never rejects. */
async function serve(assignment: Assignment, handle: Handler, output: RunOutput, signal: AbortSignal): Promise<void> {
  try {
    const push = (part: Part) => output.add(part);
    const result = await consume(handle(assignment, { signal, push }), push, signal);
    if (!signal.aborted) await output.end({ name: 'run.finish', body: { ...result } });
  } catch (error) {
    if (!signal.aborted) await output.end({ name: 'run.fail', body: failureOf(error) });
  } finally {
    output.close();
  }
}

async function consume(
  work: ReturnType<Handler>,
  push: (part: Part) => Promise<void>,
  signal: AbortSignal,
): Promise<HandlerResult> {
  if (!(Symbol.asyncIterator in work)) return await work;
  for (;;) {
    const step = await work.next();
    if (step.done) return step.value;
    await push(step.value);
    if (signal.aborted) return (await work.return(undefined)).value as HandlerResult;
  }
}

function failureOf(error: unknown): { error: { code: string; message: string }; retryable: boolean } {
  const known = error instanceof RunFailure;
  const message = error instanceof Error ? error.message : String(error);
  return {
    error: { code: known ? error.code.slice(0, 64) : 'worker_failed', message: message.slice(0, 1000) },
    retryable: known && error.retryable,
  };
}
