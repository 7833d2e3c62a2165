import { resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { own } from '../support/owned.js';
import type { Outcome } from './load/client-faults.js';
import type { LoadOptions } from './load/config.js';
import type { StormCut, StormReport } from './load/storm.js';

/** What a load process says of itself each second. */
const statusLine = z.object({
  phase: z.enum(['running', 'quieting', 'quiet']),
  sent: z.number(),
  acked: z.number(),
  nacked: z.number(),
  unknown: z.number(),
  received: z.number(),
  /** Most events a reader lacks of what was acknowledged. */
  behind: z.number(),
  /** Events without an answer. */
  open: z.number(),
  runsEnded: z.number(),
  /** Runs whose end nobody has seen. */
  runsOpen: z.number(),
  /** Readers that are joined, of all that mean to be. */
  joined: z.number(),
  readers: z.number(),
  /** Writes of its workers under old fences that were refused. */
  fenced: z.number(),
  /** Names of its workers, and how many runs they have in hand. */
  workers: z.array(z.string()),
  inHand: z.number(),
});
export type LoadStatus = z.infer<typeof statusLine>;

const stormCut = z.object({ storm: z.number(), cut: z.number(), at: z.number(), openedMs: z.number() });
const stormReport = stormCut.extend({ rejoinedMs: z.number(), rejoined: z.number() });

const outcome = z.object({
  did: z.string(),
  at: z.number(),
  healed: z.number(),
  hit: z.array(z.string()),
  note: z.string().optional(),
});

/** A process full of recording clients. */
export interface Load {
  readonly name: string;
  /** Its newest line. */
  readonly status: LoadStatus;
  /** Why its history is not whole: it ended without having been told to, or did not when it was. */
  readonly died: string | undefined;
  /** SIGSTOP and SIGCONT. */
  signal(name: 'SIGSTOP' | 'SIGCONT'): void;
  /** SIGKILL, as a fault: it has not died of itself. Only of one that writes its history ahead. Resolves when it is gone. */
  kill(): Promise<void>;
  /** A status of now. @throws Error as `order`. */
  ask(): Promise<LoadStatus>;
  /** One command on its standard input. */
  say(line: string): void;
  /**
   * A command that hurts somebody; resolves once that is over.
   * @throws Error where there is no answer for {@link ORDER_MS}, or the process ends before.
   */
  order(line: string): Promise<Outcome>;
  /**
   * Resolves when the sockets of a storm have been cut; `back` then when they are back.
   * @throws Error where the process ends before.
   */
  storm(count: number): Promise<StormCut & { back: Promise<StormReport> }>;
  /** Tells it to end and waits; it is killed where it does not within so many ms, and has died then. Default 20,000. */
  end(patienceMs?: number): Promise<void>;
}

const root = resolve(import.meta.dirname, '../..');
const program = resolve(import.meta.dirname, 'load/process.ts');
const NONE: LoadStatus = {
  phase: 'running',
  sent: 0,
  acked: 0,
  nacked: 0,
  unknown: 0,
  received: 0,
  behind: 0,
  open: 0,
  runsEnded: 0,
  runsOpen: 0,
  joined: 0,
  readers: 0,
  fenced: 0,
  workers: [],
  inHand: 0,
};
const END_MS = 20_000;
/** Longer than any command takes, in ms. */
const ORDER_MS = 60_000;

/** What `own` makes of an end by SIGKILL. */
const KILLED = 137;

/** Starts one; resolves with its first status line. It ends with this process, also while it is stopped. */
export function startLoad(config: LoadOptions): Promise<Load> {
  const { name } = config;
  const child = own(process.execPath, ['--import', 'tsx', program], {
    cwd: root,
    env: { ...process.env, LOAD_CONFIG: JSON.stringify(config) },
    input: true,
  });
  let status = NONE;
  /** The exit code it was told to end with. */
  let told: number | undefined;
  let died: string | undefined;
  let errors = '';
  child.stderr.on('data', (chunk: Buffer) => {
    errors = (errors + chunk.toString()).slice(-16_384);
  });
  const exited = child.exited.then((code) => {
    if (code !== told) died ??= `load ${name} ended with ${code}: ${errors}`;
  });
  const listeners = new Set<(line: unknown) => void>();
  /** The next line of a form. */
  const next = <T>(form: z.ZodType<T>): Promise<T> =>
    new Promise((resolve, reject) => {
      const listener = (line: unknown) => {
        const parsed = form.safeParse(line);
        if (!parsed.success) return;
        listeners.delete(listener);
        resolve(parsed.data);
      };
      listeners.add(listener);
      void exited.then(() => reject(new Error(died ?? `load ${name} has ended`)));
    });
  const answered = async <T>(line: string, answer: Promise<T>): Promise<T> => {
    answer.catch(() => undefined);
    load.say(line);
    const told = await Promise.race([answer, sleep(ORDER_MS, undefined, { ref: false })]);
    if (told === undefined) throw new Error(`load ${name} did not answer "${line}"`);
    return told;
  };
  const load: Load = {
    name,
    get status() {
      return status;
    },
    get died() {
      return died;
    },
    signal: (signal) => child.signal(signal),
    async kill() {
      told ??= KILLED;
      child.signal('SIGKILL');
      await exited;
    },
    ask: () => answered('status', next(statusLine)),
    say: (line) => void child.stdin.write(`${line}\n`),
    async order(line) {
      const [did = ''] = line.split(' ');
      const { note, ...rest } = await answered(line, next(outcome.refine((one) => one.did === did)));
      return note === undefined ? rest : { ...rest, note };
    },
    async storm(count) {
      const back = next(stormReport);
      back.catch(() => undefined);
      const cut = next(stormCut);
      load.say(`storm ${count}`);
      return { ...(await cut), back };
    },
    async end(patienceMs = END_MS) {
      told ??= 0;
      load.say('stop');
      const timer = setTimeout(() => {
        died ??= `load ${name} did not end within ${patienceMs / 1000} s of being told to, so its history is cut short: ${errors}`;
        child.signal('SIGKILL');
      }, patienceMs);
      await exited;
      clearTimeout(timer);
    },
  };
  return new Promise((ready, reject) => {
    void exited.then(() => reject(new Error(died)));
    createInterface({ input: child.stdout }).on('line', (line) => {
      const said = parse(line);
      for (const listener of listeners) listener(said);
      const parsed = statusLine.safeParse(said);
      if (!parsed.success) return;
      status = parsed.data;
      ready(load);
    });
  });
}

function parse(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined; // not a status
  }
}
