import { monotonic } from './history.js';
import type { FaultRun } from './torture-faults.js';
import type { Load } from './world-load.js';

/** How often a line is written where it cannot be overwritten, in s. */
const LINE_EVERY_S = 10;

/** Sums over load processes; `behind` is the worst. */
export function sumOf(loads: readonly Load[]) {
  const total = (read: (load: Load) => number) => loads.reduce((sum, load) => sum + read(load), 0);
  return {
    sent: total(({ status }) => status.sent),
    acked: total(({ status }) => status.acked),
    received: total(({ status }) => status.received),
    runsEnded: total(({ status }) => status.runsEnded),
    behind: Math.max(0, ...loads.map(({ status }) => status.behind)),
  };
}

/**
 * Writes a live line each second: over itself on a terminal, else each {@link LINE_EVERY_S} s a new one. `wrong` tells how much
 * was found so far beside what faults could not be done. @returns what ends it.
 */
export function showProgress(
  minutes: number,
  sums: () => ReturnType<typeof sumOf>,
  faults: FaultRun,
  wrong: () => number,
): () => void {
  const began = monotonic();
  const terminal = process.stdout.isTTY === true;
  let before = 0;
  let seconds = 0;
  const show = () => {
    seconds += 1;
    const { acked, received, runsEnded, behind } = sums();
    const elapsed = Math.round((monotonic() - began) / 1e6);
    const words = [
      `${clock(elapsed)} of ${clock(minutes * 60)}`,
      `${acked.toLocaleString('en')} acked (${acked - before}/s)`,
      `${received.toLocaleString('en')} delivered`,
      `behind ${behind}`,
      `${runsEnded} runs`,
      `${faults.done.length} faults`,
      `now: ${faults.active.join(', ') || 'none'}`,
      `wrong: ${wrong() + faults.failures.length}`,
    ];
    before = acked;
    if (terminal) process.stdout.write(`\r\x1b[2K${words.join(' | ').slice(0, (process.stdout.columns ?? 120) - 1)}`);
    else if (seconds % LINE_EVERY_S === 0) process.stdout.write(`${words.join(' | ')}\n`);
  };
  const timer = setInterval(show, 1000);
  return () => {
    clearInterval(timer);
    if (terminal) process.stdout.write('\n');
  };
}

const clock = (seconds: number): string =>
  `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, '0')}`;
