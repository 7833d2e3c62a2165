import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { checkHistory } from './checker/check.js';
import { HistoryWriter } from './history.js';
import { writeReport } from './report.js';
import { figuresOf } from './report-figures.js';
import { type FaultRun, runFaults } from './torture-faults.js';
import { isLong, replayCommand, type TortureOptions, tortureOptions, USAGE } from './torture-options.js';
import { showProgress, sumOf } from './torture-progress.js';
import { scheduleFaults } from './torture-schedule.js';
import { LOADS, setStage, settle, type TortureStage, WORKER_PROCESSES, watch } from './torture-stage.js';
import { writeTables } from './world-tables.js';

/*
 * npm run torture: a whole installation under load, every kind of fault at random, and at the end a checker that holds
 * what everybody saw against the promises. Exit codes: 0 nothing was wrong, 1 something was, 2 it could not be run. In a long run it
 * is wrong, too, not to reach a figure; a short one has too few samples for that, and only says so.
 */

/** Before the first fault, and after the last one began, in ms. */
const WARM_UP_MS = 4000;
const COOL_DOWN_MS = 4000;

const say = (line: string): void => void process.stdout.write(`${line}\n`);

/** Injects all faults, heals and settles. @returns the faults that were on. */
async function suffer(
  stage: TortureStage,
  options: TortureOptions,
  history: HistoryWriter,
  wrong: string[],
  interrupted: AbortSignal,
): Promise<Pick<FaultRun, 'done' | 'notDone'>> {
  const { minutes, seed, gateways } = options;
  const schedule = scheduleFaults(stage.faults, {
    seed,
    gateways,
    fromMs: WARM_UP_MS,
    toMs: minutes * 60_000 - COOL_DOWN_MS,
  });
  say(
    `${schedule.length} faults in ${minutes} min, seed ${seed}, ${gateways} gateways, ${LOADS} load processes, ${WORKER_PROCESSES} of workers`,
  );
  const run = runFaults(schedule, stage.faults, stage, history);
  interrupted.addEventListener('abort', () => run.stop());
  const endWatch = watch(stage, wrong);
  const hide = showProgress(
    minutes,
    () => sumOf(stage.everybody),
    run,
    () => wrong.length,
  );
  await sleep(minutes * 60_000, undefined, { signal: interrupted }).catch(() => undefined);
  await run.finished;
  await settle(stage.everybody, wrong);
  hide();
  await endWatch();
  wrong.push(...run.failures.map((failure) => `a fault could not be done: ${failure}`));
  return run;
}

/** @returns whether nothing was wrong. */
async function torture(options: TortureOptions, interrupted: AbortSignal): Promise<boolean> {
  const { out } = options;
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  const histories = join(out, 'history');
  const wrong: string[] = [];
  const stage = await setStage(options, histories);
  const ownHistory = join(histories, 'torture.jsonl');
  let run: Pick<FaultRun, 'done' | 'notDone'>;
  try {
    for (const line of stage.leftOut) say(`left out: ${line}`);
    const history = new HistoryWriter(ownHistory);
    run = await suffer(stage, options, history, wrong, interrupted);
    await Promise.all(stage.everybody.map((load) => load.end()));
    for (const { died } of stage.everybody) if (died !== undefined && !wrong.includes(died)) wrong.push(died);
    await stage.world.asSuperuser((sql) => writeTables(sql, (entry) => history.write(entry)));
    await history.close();
    const { acked, received } = sumOf(stage.everybody);
    say(`${acked.toLocaleString('en')} acknowledged, ${received.toLocaleString('en')} delivered; checking`);
  } finally {
    await stage.end();
  }
  const verdict = await checkHistory([ownHistory, ...stage.histories]);
  const { faults, leftOut } = stage;
  say(await writeReport({ options, verdict, faults, leftOut, done: run.done, notDone: run.notDone, wrong }));
  const reached = figuresOf(verdict, isLong(options)).every((figure) => figure.reached !== false);
  const ok = verdict.ok && wrong.length === 0 && (reached || !isLong(options));
  if (ok && !options.keep) rmSync(histories, { recursive: true, force: true });
  if (!ok)
    say(`\nSomething was wrong; logs and histories are in ${out}. The same faults again:\n  ${replayCommand(options)}`);
  return ok;
}

async function main(): Promise<number> {
  let options: TortureOptions;
  try {
    options = tortureOptions(process.argv.slice(2));
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : error}\n\n${USAGE}\n`);
    return 2;
  }
  const interruption = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.on(signal, () => {
      if (interruption.signal.aborted) process.exit(130); // what was started ends with us
      say('\ninterrupted: healing, then the report of what was done so far');
      interruption.abort();
    });
  }
  try {
    return (await torture(options, interruption.signal)) ? 0 : 1;
  } catch (error) {
    process.stderr.write(`could not be run: ${error instanceof Error ? error.stack : error}\n`);
    return 2;
  }
}

process.exit(await main());
