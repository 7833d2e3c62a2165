import { type Clock, every, systemClock } from './clock.js';
import type { Logger } from './telemetry.js';

/** A difference that networks and busy machines do not make, in ms; as much as tokens are forgiven. */
const OFF_MS = 5000;
/** An answer that took longer says nothing of the time, in ms. */
const SLOW_ANSWER_MS = 2000;
const TELL_EVERY_MS = 60_000;

export interface ClockCheckDeps {
  /** The time by the database, ms since the Unix epoch. */
  time: () => Promise<number>;
  /** How often it is asked, in ms. */
  pollMs: number;
  log: Logger;
  clock?: Clock;
}

/**
 * Compares the wall clock of this machine with that of the database, which all gateways share. It cannot know which of
 * the two is right, so nothing is corrected: it is told, and what only this clock refuses may be tried elsewhere.
 */
export class ClockCheck {
  readonly #clock: Clock;
  #offsetMs = 0;
  #toldAt = Number.NEGATIVE_INFINITY;
  #stop: (() => void) | undefined;

  constructor(private readonly deps: ClockCheckDeps) {
    this.#clock = deps.clock ?? systemClock;
  }

  /** The database's clock less this one, in ms, as last seen; 0 while nothing is known. */
  get offsetMs(): number {
    return this.#offsetMs;
  }

  /** Whether the two differ by more than can be forgiven. */
  get off(): boolean {
    return Math.abs(this.#offsetMs) > OFF_MS;
  }

  /** Looks now, and from now on. Resolves after the first look, whether or not it worked. */
  start(): Promise<void> {
    this.#stop = every(this.#clock, this.deps.pollMs, () => void this.#look());
    return this.#look();
  }

  stop(): void {
    this.#stop?.();
  }

  async #look(): Promise<void> {
    const asked = this.#clock.monotonic();
    try {
      const time = await this.deps.time();
      const answered = this.#clock.monotonic();
      if (answered - asked > SLOW_ANSWER_MS) return;
      this.#offsetMs = Math.round(time + (answered - asked) / 2 - this.#clock.now());
    } catch {
      // Others tell that the database is away.
      return;
    }
    if (!this.off || this.#clock.monotonic() - this.#toldAt < TELL_EVERY_MS) return;
    this.#toldAt = this.#clock.monotonic();
    this.deps.log.error({ offsetMs: this.#offsetMs }, 'The clock of this machine and that of the database differ');
  }
}
