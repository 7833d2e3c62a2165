import { asTuttiError } from '../errors.js';
import type { Part } from '../protocol/parts.js';
import { isTerminal, type Run } from '../protocol/runs.js';
import type { Bus } from './bus.js';
import type { Clock } from './clock.js';
import { roomKey } from './keys.js';
import type { RunStore, StoredRun } from './run-store.js';
import type { RunView } from './run-view.js';
import type { RunViews } from './run-views.js';
import { toRun } from './run-wire.js';

/** A reader of one run's output. Calls come one at a time and in order. */
export interface RunWatcher {
  /** Consecutive parts: `parts[i]` has number `n + i` of the attempt. */
  parts(attempt: number, n: number, parts: Part[]): void;
  /** Forget the output: the next part is number 0 of this attempt. */
  reset(attempt: number): void;
  /** The run is over and all of its output was given. The last call. */
  end(run: Run): void;
  /** Resolves `true` when the reader can take more, `false` when it is gone. */
  drained(): Promise<boolean>;
}

/** Output read from the store at once, in bytes. */
const PAGE_BYTES = 256 * 1024;
/** How often the store is asked for parts that were announced and are not committed yet, in ms. */
const RETRY_MS = 100;

/**
 * Gives one run's output from a position to its end: from the store what is committed, then live. The reader sets
 * the pace; a slow one is served from the store. Resolves when the run ended, the reader is gone or `signal` aborted.
 */
export async function watchRun(
  deps: { store: RunStore; bus: Bus; views: RunViews; clock: Clock },
  stored: StoredRun,
  from: { attempt: number; n: number } | undefined,
  watcher: RunWatcher,
  signal: AbortSignal,
): Promise<void> {
  const { store, bus, views, clock } = deps;
  const room = roomKey(stored.tenant, stored.room);
  let attempt = stored.attempt;
  let n = 0;
  let resets: number | undefined;
  let wake = () => {};
  const change = () =>
    new Promise<void>((resolve) => {
      wake = resolve;
    });
  const changed = () => wake();
  let watched: RunView | undefined;
  /** The output given so far may not be what the store has any more. */
  let lost = false;

  const give = async (parts: Part[]): Promise<boolean> => {
    if (parts.length === 0) return true;
    watcher.parts(attempt, n, parts);
    n += parts.length;
    return watcher.drained();
  };
  const restart = (at: number) => {
    attempt = at;
    n = 0;
    watcher.reset(at);
  };
  /** Gives committed parts below `end`. @returns `false` where the reader is gone. */
  const replay = async (end: number): Promise<boolean> => {
    while (n < end && !signal.aborted) {
      const segments = await store.segments(stored.tenant, stored.id, attempt, n, PAGE_BYTES);
      const before = n;
      for (const segment of segments) {
        const parts = (JSON.parse(segment.parts) as Part[]).slice(n - segment.n, end - segment.n);
        if (!(await give(parts))) return false;
      }
      if (n === before) break;
    }
    return !signal.aborted;
  };

  if (from) {
    if (from.attempt === attempt && from.n <= Math.max(stored.committed, stored.length ?? 0)) n = from.n;
    else if (from.attempt === attempt && !isTerminal(stored.state)) n = from.n;
    else restart(attempt);
  }

  await bus.subscribe(room);
  let opened = false;
  signal.addEventListener('abort', changed);
  try {
    await views.openRoom(room);
    opened = true;
    while (!signal.aborted) {
      const view = views.find(room, stored.id);
      if (view !== watched) {
        watched?.watchers.delete(changed);
        lost ||= watched?.lost === true;
        watched = view;
        resets = view?.resets;
        if (view) {
          view.tail = view.watchers.size > 0 ? view.tail : [];
          view.watchers.add(changed);
        }
      }
      const next = change();
      if (!view) {
        const now = await store.get(stored.tenant, stored.id);
        if (!now) return;
        if (isTerminal(now.state)) {
          const length = now.length ?? 0;
          if (lost || now.attempt !== attempt || n > length) restart(now.attempt);
          // Without its output the run went with its room meanwhile: no end is told that is none.
          if ((await replay(length)) && n === length) watcher.end(toRun(now));
          return;
        }
        await pause(clock, RETRY_MS, next);
        continue;
      }
      if (!lost && view.attempt < attempt) {
        // The store knew of a retry that this gateway has not heard of: what it has is of the attempt before.
        await pause(clock, RETRY_MS, next);
        continue;
      }
      if (lost || view.attempt > attempt || view.resets !== resets) {
        lost = false;
        resets = view.resets;
        restart(view.attempt);
      }
      const tailFrom = view.next - view.tail.length;
      if (n >= tailFrom && n < view.next) {
        if (!(await give(view.tail.slice(n - tailFrom)))) return;
      } else if (n < tailFrom) {
        const before = n;
        if (!(await replay(tailFrom))) return;
        if (n === before) await pause(clock, RETRY_MS, next);
      } else if (!view.over) {
        await next;
      }
    }
  } catch (error) {
    throw asTuttiError(error);
  } finally {
    signal.removeEventListener('abort', changed);
    watched?.watchers.delete(changed);
    if (opened) views.closeRoom(room);
    bus.unsubscribe(room);
  }
}

async function pause(clock: Clock, ms: number, sooner: Promise<void>): Promise<void> {
  let cancel = () => {};
  await Promise.race([
    sooner,
    new Promise<void>((resolve) => {
      cancel = clock.after(ms, resolve);
    }),
  ]);
  cancel();
}
