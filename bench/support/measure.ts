import { readFileSync } from 'node:fs';
import { kill } from 'node:process';

/** Ticks of /proc's clock in a second; Linux shows user space 100 whatever the kernel's own is. */
const TICKS = 100;

/** CPU time a process has used in user and kernel mode, with all its threads, in s, to 10 ms. Linux only. */
export function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS;
}

/** CPU time the work took in a process, in s. */
export async function cpuOf(pid: number, work: () => Promise<void>): Promise<number> {
  const before = cpuSeconds(pid);
  await work();
  return cpuSeconds(pid) - before;
}

/** For `NODE_OPTIONS`: leaves a CPU profile of the process in a directory when it ends. */
export function cpuProbe(directory: string): string {
  const module = new URL('./cpu-probe.mjs', import.meta.url);
  module.searchParams.set('into', directory);
  return `--import ${module.href}`;
}

/** Memory after a garbage collection, in bytes. */
export interface Memory {
  rss: number;
  heapUsed: number;
  external: number;
}

/** For `NODE_OPTIONS` of a process of which {@link memoryOf} is asked. */
export const memoryProbe = `--import ${new URL('./memory-probe.mjs', import.meta.url).href}`;

/** Collects garbage in a process started with {@link memoryProbe} and reads its memory. */
export async function memoryOf(process: { pid: number; output(): string }): Promise<Memory> {
  const told = () => process.output().match(/^memory-probe .*\n/gm) ?? [];
  const before = told().length;
  kill(process.pid, 'SIGUSR2');
  while (told().length === before) await sleep(20);
  return JSON.parse(told().at(-1)?.slice('memory-probe '.length) ?? '') as Memory;
}

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** A promise settled from outside. */
export function deferred(): { promise: Promise<void>; resolve(): void; reject(error: Error): void } {
  let resolve: () => void = () => undefined;
  let reject: (error: Error) => void = () => undefined;
  const promise = new Promise<void>((done, failed) => {
    resolve = done;
    reject = failed;
  });
  return { promise, resolve, reject };
}

/** Counts to a number that somebody waits for. */
export class Tally {
  count = 0;
  #target = Number.POSITIVE_INFINITY;
  #reached: () => void = () => undefined;

  add(): void {
    if (++this.count >= this.#target) {
      this.#target = Number.POSITIVE_INFINITY;
      this.#reached();
    }
  }

  /** Resolves when the count has grown by `more`. @throws Error when it has not in 30 s. */
  async grow(more: number, work: () => void): Promise<void> {
    this.#target = this.count + more;
    const reached = deferred();
    this.#reached = reached.resolve;
    const timer = setTimeout(
      () => reached.reject(new Error(`${this.#target - this.count} of ${more} are missing`)),
      30_000,
    );
    work();
    await reached.promise.finally(() => clearTimeout(timer));
  }
}

/** Runs `work` for 0 … count-1, some at the same time, and gives the results in order. */
export async function each<T>(count: number, atOnce: number, work: (i: number) => Promise<T>): Promise<T[]> {
  const results = new Array<T>(count);
  let next = 0;
  const runner = async () => {
    for (let i = next++; i < count; i = next++) results[i] = await work(i);
  };
  await Promise.all(Array.from({ length: Math.min(atOnce, count) }, runner));
  return results;
}

/** Calls `act` `perSecond` times a second for `seconds`; what a late timer missed is caught up at once. */
export async function pace(perSecond: number, seconds: number, act: (i: number) => void): Promise<void> {
  const start = performance.now();
  const total = Math.round(perSecond * seconds);
  for (let i = 0; i < total; ) {
    const due = Math.min(total, Math.floor(((performance.now() - start) / 1000) * perSecond) + 1);
    while (i < due) act(i++);
    await sleep(1);
  }
}
