import { useEffect, useState } from 'preact/hooks';

/** Whole seconds until `at` (ms since the Unix epoch), never below 0. */
export function useSecondsUntil(at: number | undefined): number {
  const [, tick] = useState(0);
  useEffect(() => {
    if (at === undefined) return;
    const timer = setInterval(() => tick((n) => n + 1), 250);
    return () => clearInterval(timer);
  }, [at]);
  return at === undefined ? 0 : Math.max(0, Math.ceil((at - Date.now()) / 1000));
}
