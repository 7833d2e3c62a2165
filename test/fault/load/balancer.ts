import { shuffled } from '../../support/random.js';
import type { LoadConfig } from './config.js';

type Gateway = LoadConfig['gateways'][number];

/** How long one that did not answer is asked last, in ms. */
const AWAY_MS = 3000;

/** What a balancer in front of the gateways knows of them, for clients that dial them without one. */
export class Balancer {
  readonly #gateways: readonly Gateway[];
  readonly #random: () => number;
  readonly #awayUntil = new Map<string, number>();

  constructor(gateways: readonly Gateway[], random: () => number) {
    this.#gateways = gateways;
    this.#random = random;
  }

  /** All of them at random, those that did not answer lately last. */
  order(): Gateway[] {
    const now = Date.now();
    const isAway = ({ name }: Gateway) => (this.#awayUntil.get(name) ?? 0) > now;
    const all = shuffled(this.#gateways, this.#random);
    return [...all.filter((one) => !isAway(one)), ...all.filter(isAway)];
  }

  /** It refused a connection, or said nothing on one. */
  didNotAnswer({ name }: Gateway): void {
    this.#awayUntil.set(name, Date.now() + AWAY_MS);
  }
}
