import { describeMachine } from './support/stage.js';

/*
 * `npm run bench -- <name> …` runs benchmarks by name, `all` of them, or lists them. Each prints ours, the floor
 * measured in the same run, and how they compare. Nothing asserts a time.
 */

const benchmarks = {
  'fan-out': () => import('./fan-out.js'),
  'fan-out-redis': () => import('./fan-out-redis.js'),
  publish: () => import('./publish.js'),
  latency: () => import('./latency.js'),
  runs: () => import('./runs.js'),
  memory: () => import('./memory.js'),
  resume: () => import('./resume.js'),
  bystanders: () => import('./bystanders.js'),
} satisfies Record<string, () => Promise<{ run(): Promise<void> }>>;

/** The same work by the raw library, in a process of its own. */
const floors = {
  publish: () => import('./floors/publish.js'),
  chunks: () => import('./floors/chunks.js'),
  socketio: () => import('./floors/socketio.js'),
} satisfies Record<string, () => Promise<{ serve(args: string[]): void }>>;

const has = <T extends object>(table: T, name: string | undefined): name is keyof T & string =>
  name !== undefined && Object.hasOwn(table, name);

async function main(args: string[]): Promise<void> {
  const [first, floor, ...rest] = args;
  if (first === 'floor' && has(floors, floor)) {
    (await floors[floor]()).serve(rest);
    return;
  }
  const end = args.indexOf('--profile');
  const wanted = end < 0 ? args : args.slice(0, end);
  const names = wanted.includes('all') ? Object.keys(benchmarks) : wanted;
  if (names.length === 0 || !names.every((name) => has(benchmarks, name))) {
    process.stderr.write(
      `npm run bench -- <name> … [--profile <directory>]\n  all ${Object.keys(benchmarks).join(' ')}\n`,
    );
    process.exitCode = 1;
    return;
  }
  process.stdout.write(`${describeMachine()}\n`);
  for (const name of names) if (has(benchmarks, name)) await (await benchmarks[name]()).run();
}

await main(process.argv.slice(2));
