/** Between two beats of a process that runs, in µs, at most. */
const STANDSTILL_US = 1_000_000;
/** After it woke a process has read what had come meanwhile within this, in µs. */
const BACKLOG_US = 2_000_000;

/**
 * Tells when something was given to a process that stands still at times (SIGSTOP): what comes meanwhile is read only when it
 * wakes, and by then another may have been given the same. Times are µs of the monotonic clock.
 */
export class Standstill {
  #beatAt: number;
  /** The last time that it stood still. */
  #from = Number.NEGATIVE_INFINITY;
  #to = Number.NEGATIVE_INFINITY;

  constructor(now: number) {
    this.#beatAt = now;
  }

  /** Call it again and again: a beat that comes late shows that the process stood still. */
  beat(now: number): void {
    if (now - this.#beatAt > STANDSTILL_US) {
      this.#from = this.#beatAt;
      this.#to = now;
    }
    this.#beatAt = now;
  }

  /**
   * When something was given that is read `now`, and is `ageUs` old as the giver says. That is believed only of what may have
   * waited here while the process stood still, and never for a time before that.
   */
  given(now: number, ageUs: number): number {
    this.beat(now);
    if (now - this.#to > BACKLOG_US) return now;
    return Math.min(now, Math.max(this.#from, now - ageUs));
  }
}
