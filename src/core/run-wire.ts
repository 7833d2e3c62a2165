import { encodePush, type Frame, frameOf, payloadOf } from '../protocol/frames.js';
import type { Part } from '../protocol/parts.js';
import type { Pushes, ResetReason } from '../protocol/pushes.js';
import type { Run } from '../protocol/runs.js';
import type { StoredRun } from './run-store.js';

/** Consecutive parts of one attempt: `parts[i]` has number `n + i`. The frame says the same on the wire. */
export interface Chunk {
  run: string;
  attempt: number;
  n: number;
  count: number;
  frame: Frame;
  /** Where they are at hand; else they are parsed from the frame, once they are needed. */
  parts?: readonly Part[];
}

/** The part of a stored run that readers may see. */
export function toRun({ tenant: _, fence: _f, committed: _c, output: _o, ...run }: StoredRun): Run {
  return run;
}

/** The push `run.state` of a run as it stands. */
export const stateFrame = ({ id, room, state, attempt, model, length, usage, error }: Run): Frame =>
  encodePush('run.state', {
    room,
    run: id,
    state,
    attempt,
    model,
    ...(length === undefined ? {} : { length }),
    ...(usage === undefined ? {} : { usage }),
    ...(error === undefined ? {} : { error }),
  });

export const resetFrame = (room: string, run: string, attempt: number, reason: ResetReason): Frame =>
  encodePush('run.reset', { room, run, attempt, reason });

/** The frame of parts that are JSON texts already. */
export const chunkFrame = (room: string, run: string, attempt: number, n: number, texts: readonly string[]): Frame =>
  frameOf('run.chunk', `{"room":"${room}","run":"${run}","attempt":${attempt},"n":${n},"parts":[${texts.join(',')}]}`);

/** The key of a chunk's announcement. */
export const chunkKey = ({ run, attempt, n, count }: Chunk): string => `${run}:${attempt}:${n}:${count}`;

/** A chunk as announced by another gateway, or `undefined` where the key is none of ours. */
export function chunkOf(key: string, frame: Frame): Chunk | undefined {
  const [run, attempt, n, count] = key.split(':');
  if (!run || attempt === undefined || n === undefined || count === undefined) return undefined;
  return { run, attempt: Number(attempt), n: Number(n), count: Number(count), frame };
}

/** The parts of a chunk, parsed at most once. */
export function partsOf(chunk: Chunk): readonly Part[] {
  chunk.parts ??= (JSON.parse(payloadOf(chunk.frame, 'run.chunk')) as Pushes['run.chunk']).parts;
  return chunk.parts;
}

/** What the frame of a `run` announcement says. */
export type RunNews =
  | { push: 'run.state'; payload: Pushes['run.state'] }
  | { push: 'run.reset'; payload: Pushes['run.reset'] };

export function newsOf(frame: Frame): RunNews {
  return frame.startsWith('42["run.reset"')
    ? { push: 'run.reset', payload: JSON.parse(payloadOf(frame, 'run.reset')) as Pushes['run.reset'] }
    : { push: 'run.state', payload: JSON.parse(payloadOf(frame, 'run.state')) as Pushes['run.state'] };
}
