import type { WireError } from '../errors.js';

/** What every command is answered with. */
export type Answer<R> = ({ ok: true } & R) | { ok: false; error: WireError };

/** A refusal as a client or worker sees it. `code` may be one a newer server made up; judge by `retryable` then. */
export class Refusal extends Error {
  override readonly name = 'Refusal';
  readonly code: string;
  readonly retryable: boolean;
  readonly retryAfterMs: number | undefined;
  readonly expected: number | undefined;

  constructor(error: { code: string; message: string; retryable: boolean; retryAfterMs?: number; expected?: number }) {
    super(error.message);
    this.code = error.code;
    this.retryable = error.retryable;
    this.retryAfterMs = error.retryAfterMs;
    this.expected = error.expected;
  }

  /** The refusal in a `connect_error`, if the server sent one; an unreachable server sends none. */
  static fromConnectError(error: Error): Refusal | undefined {
    const data = (error as { data?: unknown }).data;
    if (typeof data !== 'object' || data === null || !('code' in data)) return undefined;
    const { code, retryable } = data as { code: unknown; retryable?: unknown };
    return new Refusal({ ...data, code: String(code), message: error.message, retryable: retryable === true });
  }
}

/** The connection went away, or no answer came in time: the outcome of the command is unknown. */
export class Unanswered extends Error {
  override readonly name = 'Unanswered';
}

/**
 * Time before try number `attempt` (0, 1, 2 …), in ms: grows to `maxMs`, with jitter of a half so that clients that
 * lost one server do not come back in step.
 */
export function backoffMs(attempt: number, baseMs: number, maxMs: number, random: () => number = Math.random): number {
  const full = Math.min(maxMs, baseMs * 2 ** Math.min(attempt, 16));
  return Math.round(full * (0.5 + random() / 2));
}
