import { createInterface } from 'node:readline';
import { type LoadOptions, loadConfig } from './config.js';
import { Load } from './load.js';

/*
 * A load process: `node --import tsx test/fault/load/process.ts` with its LoadConfig as JSON in LOAD_CONFIG. It prints a Status as
 * one line of JSON every second, at once when a phase changes, and takes commands on stdin, one a line:
 *
 *   quiet                    nothing new; the phase is `quiet` when everything has its answer and every run its end
 *   stop                     closes, ends the history, exits with 0
 *   cut <n>                  the TCP connections of n clients are gone
 *   half-open <n>            n clients fall silent without closing and come back as new connections
 *   slow <n> <ms>            n readers read nothing for so long
 *   duplicate <n>            n readers get a second tab, for 15 s
 *   storm <n>                n more readers come, lose their connections at once, come back and go; prints a StormCut, then a StormReport
 *   flood <tenant> <ms>      a tenant publishes as fast as it can, in a room of its own; prints a FloodReport
 *   poison                   one publisher sends an event that Postgres refuses, among others
 *   worker-kill              a worker is gone with all it held
 *   worker-stop <ms>         a worker is silent for so long, then goes on under its old fences
 *   two-workers              a second connection uses the claim of a worker
 *
 * The end of stdin is `stop`: a load process does not outlive who started it.
 */

const QUIET_MS = 60_000;
const STATUS_MS = 1000;

const load = await Load.start(loadConfig(JSON.parse(process.env.LOAD_CONFIG ?? '{}') as LoadOptions));
const { faults } = load;

const print = (line: unknown) => process.stdout.write(`${JSON.stringify(line)}\n`);
const say = () => print(load.status());
const number = (text: string | undefined, fallback: number) => (text === undefined ? fallback : Number(text));

const commands: Record<string, (...words: string[]) => unknown> = {
  async quiet() {
    await load.quiet(QUIET_MS);
    say();
  },
  async stop() {
    await load.stop();
    say();
    process.exit(0);
  },
  cut: (n) => faults.cut(number(n, 1)),
  'half-open': (n) => faults.halfOpen(number(n, 1)),
  slow: (n, ms) => faults.slow(number(n, 1), number(ms, 5000)),
  duplicate: (n) => faults.duplicate(number(n, 1)),
  storm: async (n) => print(await faults.storm(number(n, 100), print)),
  flood: async (tenant = '', ms) => print((await faults.flood(tenant, number(ms, 2000))) ?? { flood: null }),
  poison: () => faults.poison(),
  'worker-kill': () => faults.workerKill(),
  'worker-stop': (ms) => faults.workerStop(number(ms, 20_000)),
  'two-workers': () => faults.twoWorkers(),
};

process.stdout.on('error', () => process.exit(1));
setInterval(say, STATUS_MS);
const input = createInterface({ input: process.stdin });
input.on('line', (line) => {
  const [name = '', ...words] = line.trim().split(/\s+/);
  const command = commands[name];
  if (command) void command(...words);
  else console.error(`no such command: ${line}`);
});
input.on('close', () => void commands.stop?.());
