import { mintBody, mintReply } from '../../protocol/http.js';
import type { AuthPort } from '../ports.js';
import { json, type Route, route } from '../route.js';

export const tokenRoutes = (auth: AuthPort): Route[] => [
  route({
    method: 'POST',
    path: '/v1/tokens',
    id: 'mintToken',
    tag: 'tokens',
    summary: 'Mint a token for a user of your tenant',
    access: 'server',
    body: { json: mintBody },
    responses: { 201: { description: 'The token.', schema: mintReply } },
    handle: async ({ principal, body }) => json(201, await auth.mint(principal, body)),
  }),
];
