import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { Logger } from '../core/telemetry.js';

const BACKOFF_MIN_MS = 500;
const BACKOFF_MAX_MS = 30_000;
/** A worker that lived so long counts as healthy: the next pause is short again. */
const HEALTHY_MS = 30_000;
const STOP_TIMEOUT_MS = 7000;

/**
 * Keeps the demo worker running in a process of its own. It holds the end of a channel to us and ends when that closes,
 * which it does however we end.
 * @param env what the worker is told: TUTTI_URL, TUTTI_WORKER_KEY and OPENAI_*
 * @returns the stop, which resolves when the process is gone
 */
export function startDemoWorker(env: Record<string, string>, log: Logger): () => Promise<void> {
  let child: ChildProcess | undefined;
  let timer: NodeJS.Timeout | undefined;
  let stopped = false;
  let pauseMs = BACKOFF_MIN_MS;

  const start = () => {
    const startedAt = Date.now();
    const { PATH = '', HOME = '', NODE_EXTRA_CA_CERTS } = process.env;
    const one = spawn(process.execPath, program(), {
      env: { PATH, HOME, ...(NODE_EXTRA_CA_CERTS ? { NODE_EXTRA_CA_CERTS } : {}), ...env },
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    child = one;
    let over = false;
    const ended = (why: object) => {
      if (over) return;
      over = true;
      child = undefined;
      if (stopped) return;
      if (Date.now() - startedAt > HEALTHY_MS) pauseMs = BACKOFF_MIN_MS;
      log.warn({ ...why, retryInMs: pauseMs }, 'the demo worker ended; starting it again');
      timer = setTimeout(start, pauseMs);
      timer.unref();
      pauseMs = Math.min(2 * pauseMs, BACKOFF_MAX_MS);
    };
    one.once('error', (error) => ended({ err: error }));
    one.once('exit', (code, signal) => ended({ code, signal }));
  };
  start();

  return async () => {
    stopped = true;
    clearTimeout(timer);
    const one = child;
    if (!one) return;
    await new Promise<void>((done) => {
      const late = setTimeout(() => one.kill('SIGKILL'), STOP_TIMEOUT_MS);
      one.once('exit', () => {
        clearTimeout(late);
        done();
      });
      one.kill('SIGTERM');
    });
  };
}

/** The built worker beside us, or its source where we run from the sources. */
function program(): string[] {
  const built = join(import.meta.dirname, 'worker.js');
  if (existsSync(built)) return [built];
  return [...process.execArgv, join(import.meta.dirname, 'worker.ts')];
}
