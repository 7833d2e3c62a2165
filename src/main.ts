import { resolve } from 'node:path';
import { type Config, ConfigError, readConfig } from './config.js';
import type { Directory } from './core/directory.js';
import type { Logger } from './core/telemetry.js';
import { startEmbeddedPostgres } from './db/embedded.js';
import { DataDirectoryInUse } from './db/embedded-lock.js';
import { DatabaseSetupError } from './db/roles.js';
import { bootstrapDemo, type DemoCredentials } from './demo/bootstrap.js';
import { demoTokenRoute } from './demo/token-route.js';
import { startDemoWorker } from './demo/worker-process.js';
import { asTuttiError } from './errors.js';
import { startGateway } from './gateway.js';
import type { Route } from './http/route.js';
import { createLogger } from './telemetry/logger.js';

/*
 * The process. Exit codes: 0 ended as asked; 1 failed, was not done in its grace period, left something accepted
 * uncommitted, or was told twice to end; 2 cannot start as it is configured.
 */

/** How long a process that failed may take to leave things in order, in ms. */
const CRASH_GRACE_MS = 5000;
/** How long Postgres may take to stop after the drain, in ms. */
const POSTGRES_GRACE_MS = 25_000;

/** What was started, in the order it has to be closed. */
class Running {
  /** @returns whether all that was accepted is committed */
  drainGateway: (() => Promise<boolean>) | undefined;
  stopWorker: (() => Promise<void>) | undefined;
  stopPostgres: (() => Promise<void>) | undefined;
  ending = false;

  /** @returns whether all was closed in time with nothing left behind; Postgres gets its own time after the others. */
  async close(graceMs: number, postgresGraceMs: number): Promise<boolean> {
    let committed = true;
    const drain = async () => {
      committed = (await this.drainGateway?.()) ?? true;
    };
    const drained = await within(graceMs, () => Promise.all([drain(), this.stopWorker?.()]));
    const stopped = await within(postgresGraceMs, () => this.stopPostgres?.());
    return drained && committed && stopped;
  }
}

/** Ends what is still starting once it has started; what did not start needs no end. */
const afterStart = <T, R>(starting: Promise<T>, end: (started: T) => Promise<R>): Promise<R | undefined> =>
  starting.then(end, () => undefined);

async function within(ms: number, work: () => Promise<unknown> | undefined): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<boolean>((done) => {
    timer = setTimeout(() => done(false), ms);
  });
  const done = Promise.resolve(work()).then(() => true);
  return Promise.race([done, late]).finally(() => clearTimeout(timer));
}

async function run(config: Config, log: Logger, running: Running): Promise<void> {
  let databaseUrl = config.DATABASE_URL;
  if (databaseUrl === undefined) {
    const starting = startEmbeddedPostgres(config.TUTTI_DATA_DIR, log, say);
    running.stopPostgres = () => afterStart(starting, (embedded) => embedded.stop());
    databaseUrl = (await starting).url;
  }
  let demo: DemoCredentials | undefined;
  const prepare = async (directory: Directory): Promise<Route[]> => {
    demo = await bootstrapDemo(config, directory);
    return [demoTokenRoute(directory)];
  };
  if (running.ending) return;
  const starting = startGateway({ config, databaseUrl, log, ...(config.production ? {} : { prepare }) });
  running.drainGateway = async () => (await afterStart(starting, (gateway) => gateway.drain())) ?? true;
  const url = reachableUrl((await starting).url);
  if (running.ending) return;
  if (demo && config.TUTTI_DEMO_WORKER !== false) {
    running.stopWorker = startDemoWorker(workerEnvironment(config, url, demo), log);
  }
  if (!config.production) say(banner(config, url));
}

function workerEnvironment(config: Config, url: string, demo: DemoCredentials): Record<string, string> {
  const { OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL } = config;
  const openai = Object.entries({ OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL });
  return {
    TUTTI_URL: url,
    TUTTI_WORKER_KEY: demo.workerKey,
    ...Object.fromEntries(openai.flatMap(([name, value]) => (value === undefined ? [] : [[name, value]]))),
  };
}

/** An address to connect to, where the gateway listens on all of them. */
function reachableUrl(url: string): string {
  return url.replace('//0.0.0.0:', '//127.0.0.1:').replace('//[::]:', '//[::1]:');
}

const banner = (config: Config, url: string): string => `
  Tutti listens on ${url}

  Open   ${url}/          two tabs share one room; ask the AI in it
  Token  npm run tutti -- token --user alice
  Data   ${config.DATABASE_URL ? 'the Postgres of DATABASE_URL' : resolve(config.TUTTI_DATA_DIR)}
  Stop   Ctrl-C
`;

const say = (line: string): void => {
  process.stdout.write(`${line}\n`);
};

/** What can be told in a sentence is; anything else is logged whole. */
function explain(error: unknown, log: Logger): 1 | 2 {
  if (error instanceof ConfigError || error instanceof DatabaseSetupError || error instanceof DataDirectoryInUse) {
    process.stderr.write(`${error.message}\n`);
    return 2;
  }
  const refusal = asTuttiError(error);
  if (refusal.code === 'log_unavailable') process.stderr.write(`Postgres cannot be used: ${refusal.message}\n`);
  log.error({ err: error }, 'the gateway could not start');
  return 1;
}

async function main(): Promise<void> {
  let config: Config;
  try {
    config = readConfig();
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    process.stderr.write(`${error.message}\n`);
    process.exit(2);
  }
  const log = createLogger({ level: config.LOG_LEVEL, nodeId: config.TUTTI_NODE_ID, pretty: !config.production });
  const running = new Running();

  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.on(signal, () => {
      if (running.ending) {
        log.warn({ signal }, 'told again to end: ends at once');
        process.exit(1);
      }
      running.ending = true;
      log.info({ signal }, 'draining');
      void running.close(config.TUTTI_DRAIN_TIMEOUT_MS, POSTGRES_GRACE_MS).then(
        (clean) => {
          if (!clean) log.error({}, 'did not end cleanly within the grace period');
          process.exit(clean ? 0 : 1);
        },
        (error) => {
          log.error({ err: error }, 'the drain failed');
          process.exit(1);
        },
      );
    });
  }

  const crash = (error: unknown, kind: string) => {
    log.error({ err: error }, kind);
    if (running.ending) process.exit(1);
    running.ending = true;
    const exit = () => process.exit(1);
    void running.close(CRASH_GRACE_MS, CRASH_GRACE_MS).then(exit, exit);
  };
  process.on('uncaughtException', (error) => crash(error, 'uncaught exception'));
  process.on('unhandledRejection', (error) => crash(error, 'unhandled rejection'));

  try {
    await run(config, log, running);
  } catch (error) {
    if (running.ending) return;
    running.ending = true;
    const code = explain(error, log);
    await running.close(CRASH_GRACE_MS, POSTGRES_GRACE_MS).catch(() => undefined);
    process.exit(code);
  }
}

await main();
