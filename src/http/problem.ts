import { type ErrorCode, errors, type TuttiError } from '../errors.js';
import type { Problem } from '../protocol/http.js';
import type { Exchange } from './exchange.js';

export const PROBLEM_TYPE = 'application/problem+json';

/** A TuttiError that HTTP tells with a status of its own beside the code, such as 405. */
export type HttpRefusal = { error: TuttiError; status?: number; headers?: Record<string, string> };

const title = (code: ErrorCode): string => {
  const words = code.replaceAll('_', ' ');
  return `${words.charAt(0).toUpperCase()}${words.slice(1)}`;
};

/** RFC 9457 problem details of a refusal. */
export function problemOf({ error, status }: HttpRefusal): Problem {
  const { message, ...wire } = error.toWire();
  return {
    type: `urn:tutti:error:${error.code}`,
    title: title(error.code),
    status: status ?? errors[error.code].status,
    detail: message,
    ...wire,
  };
}

/** Answers with problem details; an exchange that already answered is left alone. */
export function refuse(exchange: Exchange, refusal: HttpRefusal): void {
  const body = problemOf(refusal);
  const wait = refusal.error.retryAfterMs;
  exchange.answer(
    body.status,
    {
      'content-type': PROBLEM_TYPE,
      'cache-control': 'no-store',
      ...(wait === undefined ? {} : { 'retry-after': String(Math.max(1, Math.ceil(wait / 1000))) }),
      ...(body.status === 401 ? { 'www-authenticate': 'Bearer' } : {}),
      ...refusal.headers,
    },
    JSON.stringify(body),
  );
}
