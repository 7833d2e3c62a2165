import { createInterface } from 'node:readline';
import type { Outcome } from './client-faults.js';
import { type LoadOptions, loadConfig } from './config.js';
import { Load } from './load.js';

/*
 * A load process: `node --import tsx test/fault/load/process.ts` with its LoadConfig as JSON in LOAD_CONFIG. It prints a Status as
 * one line of JSON every second, at once when a phase changes, and takes commands on stdin, one a line. A command that hurts
 * somebody is answered once it is over, with an Outcome and its name as `did`:
 *
 *   status                   prints a Status now
 *   quiet                    nothing new; the phase is `quiet` when everything has its answer and every run its end
 *   stop                     closes, ends the history, exits with 0
 *   cut <n>                  the TCP connections of n clients are gone
 *   half-open <n>            n clients fall silent without closing and come back as new connections
 *   slow <n> <ms>            n readers of a room read nothing for so long, while much is published there
 *   duplicate <n>            n readers get a second tab, for 15 s
 *   storm <n>                n more readers come, lose their connections at once, come back and go; prints a StormCut, then a StormReport
 *   flood <tenant> <ms>      a tenant publishes as fast as it can, in a room of its own; its Outcome is a FloodReport, too
 *   poison                   one publisher sends an event that Postgres refuses, among others
 *   two-workers              a second connection uses the claim of a worker
 *
 * The end of stdin is `stop`: a load process does not outlive who started it. One that is written ahead (`writeAhead`) may be killed
 * and stopped by signals at any moment: its history then has all that had left it.
 */

const QUIET_MS = 60_000;
const STATUS_MS = 1000;

const load = await Load.start(loadConfig(JSON.parse(process.env.LOAD_CONFIG ?? '{}') as LoadOptions));
const { faults } = load;

const print = (line: unknown) => process.stdout.write(`${JSON.stringify(line)}\n`);
const say = () => print(load.status());
const number = (text: string | undefined, fallback: number) => (text === undefined ? fallback : Number(text));

const faultsByName: Record<string, (...words: string[]) => Outcome | Promise<Outcome>> = {
  cut: (n) => faults.cut(number(n, 1)),
  'half-open': (n) => faults.halfOpen(number(n, 1)),
  slow: (n, ms) => faults.slow(number(n, 1), number(ms, 5000)),
  duplicate: (n) => faults.duplicate(number(n, 1)),
  flood: (tenant = '', ms) => faults.flood(tenant, number(ms, 2000)),
  poison: () => faults.poison(),
  'two-workers': () => faults.twoWorkers(),
};

const commands: Record<string, (...words: string[]) => unknown> = {
  status: say,
  async quiet() {
    await load.quiet(QUIET_MS);
    say();
  },
  async stop() {
    await load.stop();
    say();
    process.exit(0);
  },
  storm: async (n) => print(await faults.storm(number(n, 100), print)),
};

process.stdout.on('error', () => process.exit(1));
setInterval(say, STATUS_MS);
const input = createInterface({ input: process.stdin });
input.on('line', (line) => {
  const [name = '', ...words] = line.trim().split(/\s+/);
  const command = commands[name];
  const fault = faultsByName[name];
  if (command) void command(...words);
  else if (fault) void Promise.resolve(fault(...words)).then((outcome) => print({ did: name, ...outcome }));
  else console.error(`no such command: ${line}`);
});
input.on('close', () => void commands.stop?.());
