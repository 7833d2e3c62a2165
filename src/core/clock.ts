/** Time as the core sees it, so that a simulation can hold it. */
export interface Clock {
  /** Wall clock, ms since the Unix epoch. */
  now(): number;
  /** Calls `fn` once after `ms`; returns the cancel. A pending call does not keep the process alive. */
  after(ms: number, fn: () => void): () => void;
}

export const systemClock: Clock = {
  now: () => Date.now(),
  after(ms, fn) {
    const timer = setTimeout(fn, ms);
    timer.unref();
    return () => clearTimeout(timer);
  },
};
