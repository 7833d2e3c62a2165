import { between, pick } from '../../support/random.js';
import type { Draw, Fault, Injection, Part, Stage } from './fault.js';

/** Kinds the load writes into its history: only it knows which worker it was. */
const RECORDED = new Set(['worker-kill']);
const nothing = async () => undefined;

/** A fault the load makes of itself, when told. It ends by itself after its time. */
function told(
  kind: string,
  part: Part,
  weight: number,
  lasts: readonly [number, number],
  promise: string,
  command: (draw: Draw, stage: Stage) => string,
): Fault {
  return {
    kind,
    part,
    weight,
    lasts,
    promise,
    async inject(stage, draw): Promise<Injection> {
      const load = pick(stage.loads, draw.next);
      const line = command(draw, stage);
      load.say(line);
      return { target: `${load.name}: ${line}`, recorded: RECORDED.has(kind), heal: nothing };
    },
  };
}

/** Longer than a worker's lease, so that its run belongs to another when it wakes, in ms. */
const ZOMBIE_MS = 18_000;

/** About what gathering takes for each socket, see `Storm`, in ms. */
const GATHER_MS = 2;

/** Gathers so many sockets first. It begins when they are cut, and is healed when all are back. */
const clientStorm = (sockets: number): Fault => ({
  kind: 'client-storm',
  part: 'clients',
  weight: 2,
  lasts: [1000, 1000],
  preparesMs: sockets * GATHER_MS,
  promise: `${sockets.toLocaleString('en')} sockets that come back at once are each given exactly what they missed (RES1, FEED1).`,
  async inject({ crowd }): Promise<Injection> {
    const { at, cut, back } = await crowd.storm(sockets);
    return {
      at,
      target: `${cut.toLocaleString('en')} sockets`,
      async heal() {
        const { rejoined, rejoinedMs } = await back;
        if (rejoined < cut) throw new Error(`${rejoined} of ${cut} sockets were back after ${rejoinedMs} ms`);
        if (cut < sockets * 0.98) throw new Error(`only ${cut} of ${sockets} sockets could be gathered`);
      },
    };
  },
});

/** What clients, workers and tenants do to the installation. `storm` is how many sockets come back at once. */
export const peopleFaults = (storm: number): Fault[] => [
  told('client-cut', 'clients', 2, [0, 0], 'A lost connection resumes without a hole (RES1).', ({ next }) => {
    return `cut ${between(1, 8, next)}`;
  }),
  told('client-half-open', 'clients', 2, [0, 0], 'A connection that died silently resumes (RES1).', ({ next }) => {
    return `half-open ${between(1, 3, next)}`;
  }),
  told(
    'client-slow',
    'clients',
    2,
    [2000, 8000],
    'A slow reader slows nobody, costs a buffer, and goes on without loss (SLOW1).',
    ({ next, lastsMs }) => `slow ${between(1, 3, next)} ${lastsMs}`,
  ),
  told('client-tabs', 'clients', 2, [0, 0], 'Tabs of one user each see everything once (FEED1).', ({ next }) => {
    return `duplicate ${between(1, 4, next)}`;
  }),
  clientStorm(storm),
  told('worker-kill', 'workers', 2, [0, 0], "A dead worker's run goes on or ends in 20 s (RUN2).", () => 'worker-kill'),
  told(
    'worker-zombie',
    'workers',
    2,
    [ZOMBIE_MS, ZOMBIE_MS],
    'A worker that wakes after its lease writes nothing (RUN2).',
    () => `worker-stop ${ZOMBIE_MS}`,
  ),
  told(
    'worker-twice',
    'workers',
    2,
    [0, 0],
    'Of two workers with one claim one is fenced (RUN2).',
    () => 'two-workers',
  ),
  told(
    'tenant-flood',
    'tenants',
    2,
    [1000, 3000],
    'A flood is refused; other tenants go on (LIM1).',
    ({ next, lastsMs }, { world }) => `flood ${pick(world.tenants, next).id} ${lastsMs}`,
  ),
  told('poison', 'tenants', 2, [0, 0], 'Of a batch only the poison event is refused (ERR1).', () => 'poison'),
];
