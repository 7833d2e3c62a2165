import { randomUUID } from 'node:crypto';
import type { Exchange } from './exchange.js';

const REQUEST_ID = /^[A-Za-z0-9._:-]{1,64}$/;

/** Headers of every answer. Pages add a policy of their own for what they load. */
export const SECURITY_HEADERS: readonly [string, string][] = [
  ['x-content-type-options', 'nosniff'],
  ['x-frame-options', 'DENY'],
  ['referrer-policy', 'no-referrer'],
];

/** The policy of answers that are no page. */
export const API_POLICY = "default-src 'none'; frame-ancestors 'none'";
/** The policy of the playground: its own scripts and styles, its own gateway over HTTP and sockets. */
export const PAGE_POLICY =
  "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; style-src 'self' 'unsafe-inline'; " +
  "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
/** The policy of `/docs`, which loads and runs nothing. */
export const DOCS_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'";

/** The client's `x-request-id` where it is harmless, else a new one; echoed in the answer. */
export function requestId(exchange: Exchange): string {
  const given = exchange.head.headers.get('x-request-id');
  const id = given !== undefined && REQUEST_ID.test(given) ? given : randomUUID();
  exchange.setHeader('x-request-id', id);
  return id;
}

/** Lets pages of the configured origins read answers; `*` lets all. No cookies are involved. */
export function allowOrigin(exchange: Exchange, allowed: readonly string[]): boolean {
  exchange.setHeader('vary', 'origin');
  const origin = exchange.head.headers.get('origin');
  if (origin === undefined || !(allowed.includes('*') || allowed.includes(origin))) return false;
  exchange.setHeader('access-control-allow-origin', origin);
  exchange.setHeader('access-control-expose-headers', 'retry-after, x-request-id');
  return true;
}

/** Answers an OPTIONS request; without the access-control headers a browser takes it as a refusal. */
export function answerPreflight(exchange: Exchange, methods: readonly string[], originAllowed: boolean): void {
  const allow = [...methods, 'OPTIONS'].join(', ');
  exchange.answer(204, {
    allow,
    ...(originAllowed
      ? {
          'access-control-allow-methods': allow,
          'access-control-allow-headers': 'authorization, content-type, last-event-id, tutti-fence, x-request-id',
          'access-control-max-age': '600',
        }
      : {}),
  });
}
