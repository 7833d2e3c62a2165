import { randomUUID } from 'node:crypto';
import { z } from 'zod';
import { DEMO_TENANT, DEV_ISSUER } from '../core/auth.js';
import type { Directory } from '../core/directory.js';
import { signToken } from '../core/tokens.js';
import { TuttiError } from '../errors.js';
import type { RequestHead } from '../http/exchange.js';
import { json, type Route, route } from '../http/route.js';
import type { Capabilities } from '../protocol/capabilities.js';
import { userId } from '../protocol/primitives.js';

const TTL_SECONDS = 3600;
const demoRights: Capabilities = { '*': ['join', 'publish', 'broadcast', 'presence', 'run.create', 'run.cancel'] };

const body = z.strictObject({ user: userId, name: z.string().min(1).max(256).optional() });
const reply = z.object({ token: z.string(), expiresAt: z.int(), tenant: z.literal(DEMO_TENANT) });

/**
 * `POST /demo/token`: lets the page of this gateway in without a password. Only outside production, and only for pages
 * of the gateway's own origin.
 */
export const demoTokenRoute = (directory: Pick<Directory, 'issuer'>): Route =>
  route({
    method: 'POST',
    path: '/demo/token',
    id: 'demoToken',
    tag: 'demo',
    summary: 'A token of the tenant `demo` for the page of this gateway',
    access: 'public',
    body: { json: body },
    responses: { 201: { description: 'The token.', schema: reply } },
    errors: ['forbidden'],
    async handle({ body: { user, name }, exchange }) {
      if (!ofOwnPage(exchange.head)) {
        throw new TuttiError(
          'forbidden',
          'Only pages of this gateway get a demo token; others use `npm run tutti -- token`.',
        );
      }
      const issuer = await directory.issuer(DEV_ISSUER);
      if (issuer?.keys.kind !== 'hs256') throw new TuttiError('not_found', 'There is no demo issuer.');
      const wanted = { user, name, cap: demoRights, ttlSeconds: TTL_SECONDS, id: randomUUID() };
      const minted = await signToken({ ...issuer, keys: issuer.keys }, wanted);
      return json(201, { ...minted, tenant: DEMO_TENANT });
    },
  });

/** Browsers name the origin of every POST, and a page cannot change that. */
function ofOwnPage({ headers }: RequestHead): boolean {
  const origin = headers.get('origin');
  const host = headers.get('host');
  if (origin === undefined || host === undefined || !URL.canParse(origin)) return false;
  return new URL(origin).host === host.toLowerCase();
}
