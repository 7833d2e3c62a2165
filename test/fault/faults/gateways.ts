import { pathToFileURL } from 'node:url';
import type { Difference, Seat } from '../world-seat.js';
import type { Fault, Injection } from './fault.js';

/** How long a frozen gateway stands still, in ms: longer than a worker's lease minus a beat, and than heartbeats. */
const FROZEN_MS = 15_000;
const CLOCK_SHIFT_MS = 300_000;
/** About what a drain and a start take, in ms. */
const EXCHANGE_MS = 4000;
const CLOCK = pathToFileURL(new URL('clock-shift.mjs', import.meta.url).pathname).href;

/** SIGTERM; a drain that was not done in its grace period breaks a promise. */
async function drain(seat: Seat): Promise<void> {
  const code = await seat.drain();
  if (code !== 0) seat.complain(`DRN1: ${seat.name} ended its drain with ${code}`);
}

/** Another kind of gateway takes the seat for a while. */
async function exchange(seat: Seat, difference: Difference): Promise<Injection> {
  await drain(seat);
  await seat.start(difference);
  return {
    target: seat.name,
    async heal() {
      await drain(seat);
      await seat.start();
    },
  };
}

const wrongClock = (kind: string, shiftMs: number): Fault => ({
  kind,
  part: 'gateway',
  weight: 1,
  lasts: [5000, 8000],
  preparesMs: EXCHANGE_MS,
  aloneEvery: 2,
  promise: 'A gateway whose clock is 5 minutes off keeps order, leases and everything acknowledged (LOG2, RUN2).',
  inject: (_, { seat }) =>
    exchange(seat, { env: { NODE_OPTIONS: `--import ${CLOCK}`, TORTURE_CLOCK_SHIFT_MS: String(shiftMs) } }),
});

export const gatewayFaults: Fault[] = [
  {
    kind: 'gateway-kill',
    part: 'gateway',
    aloneEvery: 4,
    weight: 3,
    lasts: [300, 3000],
    promise: 'Nothing acknowledged is lost; its clients are caught up elsewhere within 5 s (LOG1, RES1).',
    async inject(_, { seat }) {
      await seat.kill9();
      return { target: seat.name, heal: () => seat.start() };
    },
  },
  {
    kind: 'gateway-drain',
    part: 'gateway',
    aloneEvery: 4,
    weight: 3,
    lasts: [200, 1500],
    promise: 'SIGTERM: clients move, nothing acknowledged is lost, the process exits in its grace period (DRN1).',
    async inject(_, { seat }) {
      await drain(seat);
      return { target: seat.name, heal: () => seat.start() };
    },
  },
  {
    kind: 'gateway-freeze',
    part: 'gateway',
    weight: 1,
    lasts: [FROZEN_MS, FROZEN_MS],
    aloneEvery: 2,
    promise: 'A gateway that stood still for 15 s and wakes mixes nothing in (FEED1, RUN2).',
    async inject(_, { seat }) {
      const { gateway } = seat;
      gateway.signal('SIGSTOP');
      return { target: seat.name, heal: async () => gateway.signal('SIGCONT') };
    },
  },
  wrongClock('gateway-clock-ahead', CLOCK_SHIFT_MS),
  wrongClock('gateway-clock-behind', -CLOCK_SHIFT_MS),
  {
    kind: 'gateway-previous',
    part: 'gateway',
    weight: 1,
    lasts: [5000, 8000],
    preparesMs: EXCHANGE_MS,
    aloneEvery: 2,
    promise: 'Gateways of two versions side by side are one to their clients (FEED1, RUN1).',
    impossible: ({ noPrevious }) => noPrevious,
    inject({ previous }, { seat }) {
      return exchange(seat, previous === undefined ? {} : { main: previous });
    },
  },
];
