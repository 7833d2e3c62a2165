import { between, pick } from '../../support/random.js';
import { type Draw, type Fault, type Injection, NotDone, type Part, type Stage } from './fault.js';
import { workerFaults } from './workers.js';

/** A fault the load makes of itself, when told, and that is over when the load says so. */
function told(
  kind: string,
  part: Part,
  weight: number,
  lasts: readonly [number, number],
  promise: string,
  command: (draw: Draw, stage: Stage) => string,
  more: Partial<Fault> = {},
): Fault {
  return {
    kind,
    part,
    weight,
    lasts,
    promise,
    ...more,
    async inject(stage, draw): Promise<Injection> {
      const load = pick(stage.loads, draw.next);
      const line = command(draw, stage);
      const over = load.order(line);
      over.catch(() => undefined);
      const injection: Injection = {
        target: load.name,
        async heal() {
          const { hit, ...facts } = await over;
          if (hit.length === 0) throw new NotDone(facts.note ?? `${line} found nobody to hit`);
          Object.assign(injection, facts, { target: hit.join(' ') });
        },
      };
      return injection;
    },
  };
}

/** About what gathering takes for each socket, see `Storm`, in ms. */
const GATHER_MS = 2;

/** Gathers so many sockets first. It begins when they are cut, and is healed when all are back. */
const clientStorm = (sockets: number): Fault => ({
  kind: 'client-storm',
  part: 'clients',
  weight: 2,
  // About what it takes until all are back.
  lasts: [7000, 7000],
  preparesMs: sockets * GATHER_MS,
  aloneEvery: 3,
  promise: `${sockets.toLocaleString('en')} sockets that come back at once are each given exactly what they missed (RES1, FEED1).`,
  async inject({ crowd }): Promise<Injection> {
    const { at, cut, back } = await crowd.storm(sockets);
    const injection: Injection = {
      at,
      target: `${cut.toLocaleString('en')} sockets`,
      async heal() {
        const { rejoined, rejoinedMs } = await back;
        if (rejoined < cut) throw new Error(`${rejoined} of ${cut} sockets were back after ${rejoinedMs} ms`);
        if (cut < sockets * 0.98) throw new Error(`only ${cut} of ${sockets} sockets could be gathered`);
        injection.healed = at + rejoinedMs * 1000;
        injection.note = `${cut.toLocaleString('en')} sockets back after ${(rejoinedMs / 1000).toFixed(1)} s`;
      },
    };
    return injection;
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
    [5000, 8000],
    'A slow reader slows nobody, is closed, and resumes without loss (SLOW1).',
    ({ next, lastsMs }) => `slow ${between(1, 3, next)} ${lastsMs}`,
    { aloneEvery: 4 },
  ),
  told('client-tabs', 'clients', 2, [0, 0], 'Tabs of one user each see everything once (FEED1).', ({ next }) => {
    return `duplicate ${between(1, 4, next)}`;
  }),
  clientStorm(storm),
  ...workerFaults,
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
