import { randomUUID } from 'node:crypto';
import { SignJWT } from 'jose';
import type { Capabilities } from '../../src/protocol/capabilities.js';

/** What {@link startGateway} gives its gateways; of no worth outside tests. */
export const DEV_SECRET = 'a-secret-of-the-tests-32-bytes-long';
export const DEV_SERVER_KEY = 'tutti_live_testserver_0123456789abcdefghijklmnopqrstuv';
export const DEV_WORKER_KEY = 'tutti_live_testworker_0123456789abcdefghijklmnopqrstuv';

export interface DevToken {
  user?: string;
  name?: string;
  /** Default: join, publish, broadcast, run.create, run.cancel on every room. */
  cap?: Capabilities;
  /** Default 3600; may be negative for a token that ended already. */
  ttlSeconds?: number;
  /** Overrides or adds claims; `undefined` removes one. */
  claims?: Record<string, unknown>;
  secret?: string;
}

/** A token of the issuer `tutti-dev`, tenant `demo`. */
export function devToken(token: DevToken = {}): Promise<string> {
  const now = Math.floor(Date.now() / 1000);
  const claims = {
    iss: 'tutti-dev',
    aud: 'tutti',
    sub: token.user ?? 'ann',
    iat: now,
    exp: now + (token.ttlSeconds ?? 3600),
    jti: randomUUID(),
    ...(token.name === undefined ? {} : { name: token.name }),
    cap: token.cap ?? { '*': ['join', 'publish', 'broadcast', 'run.create', 'run.cancel'] },
    ...token.claims,
  };
  return new SignJWT(claims)
    .setProtectedHeader({ alg: 'HS256' })
    .sign(new TextEncoder().encode(token.secret ?? DEV_SECRET));
}
