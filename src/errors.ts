/**
 * The one table of refusals. `status` is the HTTP status; `retryable` says whether the same request may
 * succeed later without a change. Codes are contract, messages are not.
 */
export const errors = {
  bad_request: { status: 400, retryable: false },
  unauthenticated: { status: 401, retryable: false },
  token_expired: { status: 401, retryable: false },
  forbidden: { status: 403, retryable: false },
  not_found: { status: 404, retryable: false },
  not_joined: { status: 409, retryable: false },
  conflict: { status: 409, retryable: false },
  fenced: { status: 409, retryable: false },
  out_of_order: { status: 409, retryable: false },
  payload_too_large: { status: 413, retryable: false },
  rate_limited: { status: 429, retryable: true },
  quota_exceeded: { status: 429, retryable: false },
  overloaded: { status: 503, retryable: true },
  log_unavailable: { status: 503, retryable: true },
  draining: { status: 503, retryable: true },
  slow_consumer: { status: 503, retryable: false },
  internal: { status: 500, retryable: true },
} as const satisfies Record<string, { status: number; retryable: boolean }>;

export type ErrorCode = keyof typeof errors;

/**
 * Limits by the names that the metric `limit_reached` gives them; docs/LIMITS.md says of each what it bounds and what
 * happens at it.
 */
export const limits = [
  'append_queue',
  'claims_waiting',
  'connections',
  'database_queue',
  'database_wait',
  'feed_waiting',
  'http_connections',
  'http_requests',
  'in_flight_bytes_session',
  'in_flight_bytes_tenant',
  'in_flight_session',
  'memory',
  'rate_buckets',
  'ring_total',
  'rooms_open',
  'rooms_open_tenant',
  'rooms_session',
  'run_ahead',
  'run_output',
  'run_uncommitted',
  'run_uncommitted_total',
  'run_view_backlog',
  'runs_room',
  'runs_tenant',
  'sessions_tenant',
  'sessions_user',
  'unknown_credentials',
] as const;
export type Limit = (typeof limits)[number];

/** What a refusal looks like on the wire. `expected` is the next `n` a worker has to send (`out_of_order`). */
export interface WireError {
  code: ErrorCode;
  message: string;
  retryable: boolean;
  retryAfterMs?: number;
  expected?: number;
}

/** A refusal. Everything a client may be told is in it; `cause` is for the log only. */
export class TuttiError extends Error {
  override readonly name = 'TuttiError';
  readonly code: ErrorCode;
  readonly retryAfterMs: number | undefined;
  readonly expected: number | undefined;
  /** The limit that was reached, for the metric. */
  readonly limit: Limit | undefined;

  constructor(
    code: ErrorCode,
    message: string,
    extra: { retryAfterMs?: number; expected?: number; limit?: Limit; cause?: unknown } = {},
  ) {
    // Where a refusal was thrown tells nothing, and to find out is the dearest part of refusing a flood. A cause has a stack of its own.
    const { stackTraceLimit } = Error;
    Error.stackTraceLimit = 0;
    super(message, extra.cause === undefined ? undefined : { cause: extra.cause });
    Error.stackTraceLimit = stackTraceLimit;
    this.code = code;
    this.retryAfterMs = extra.retryAfterMs;
    this.expected = extra.expected;
    this.limit = extra.limit;
  }

  get status(): number {
    return errors[this.code].status;
  }

  toWire(): WireError {
    return {
      code: this.code,
      message: this.message,
      retryable: errors[this.code].retryable,
      ...(this.retryAfterMs === undefined ? {} : { retryAfterMs: this.retryAfterMs }),
      ...(this.expected === undefined ? {} : { expected: this.expected }),
    };
  }
}

/** Any thrown value as a refusal; what is not a {@link TuttiError} becomes `internal` and tells nothing. */
export function asTuttiError(thrown: unknown): TuttiError {
  return thrown instanceof TuttiError ? thrown : new TuttiError('internal', 'Internal error.', { cause: thrown });
}
