import type { SimGateway } from './simulation.js';

/** Kills gateways in the middle of what they do: right before they call a port, or before they hear its answer. */
export class Crashes {
  /** Crossings of all gateways so far. */
  crossings = 0;
  #over = false;
  readonly #doomed = new Map<SimGateway, number>();

  /** `at`: who makes this crossing, counted from 1, dies there. */
  constructor(
    readonly kill: (gateway: SimGateway) => void,
    readonly at: number | undefined,
  ) {}

  /** The gateway dies at its next crossing but `more`. */
  doom(gateway: SimGateway, more: number): void {
    this.#doomed.set(gateway, more);
  }

  /** From now on nobody dies, and nothing is counted. */
  end(): void {
    this.#over = true;
  }

  /** To be called at each crossing. */
  crossing(gateway: SimGateway): void {
    if (this.#over) return;
    this.crossings += 1;
    const left = this.#doomed.get(gateway);
    if (left !== undefined) this.#doomed.set(gateway, left - 1);
    if (left === 0 || this.crossings === this.at) this.kill(gateway);
  }
}
