/** Time as the core sees it, so that a simulation can hold it. Pending calls do not keep the process alive. */
export interface Clock {
  /** Wall clock, ms since the Unix epoch. May jump. */
  now(): number;
  /** Clock that never jumps, ms since some moment; says nothing to another process. */
  monotonic(): number;
  /** Calls `fn` once after `ms`; returns the cancel. */
  after(ms: number, fn: () => void): () => void;
  /** Calls `fn` once when everything that came with this turn of the event loop was handled. */
  soon(fn: () => void): void;
}

export const systemClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
  after(ms, fn) {
    const timer = setTimeout(fn, ms);
    timer.unref();
    return () => clearTimeout(timer);
  },
  soon: (fn) => void setImmediate(fn),
};

/** Calls `fn` again and again, `ms` between two calls; returns the stop. */
export function every(clock: Clock, ms: number, fn: () => void): () => void {
  let cancel = () => {};
  const next = () => {
    cancel = clock.after(ms, () => {
      next();
      fn();
    });
  };
  next();
  return () => cancel();
}
