import type { Registry } from 'prom-client';
import { z } from 'zod';
import { liveness, readiness } from '../../protocol/http.js';
import { docsPage } from '../docs.js';
import { DOCS_POLICY } from '../headers.js';
import { describeApi } from '../openapi.js';
import type { HealthPort } from '../ports.js';
import { json, type Route, route } from '../route.js';

const shared = { method: 'GET', tag: 'operations', access: 'public' } as const;

export const healthRoutes = (health: HealthPort, registry: Registry): Route[] => [
  route({
    ...shared,
    path: '/healthz',
    id: 'health',
    summary: 'Whether the process works at all',
    responses: {
      200: { description: 'It does.', schema: liveness },
      503: { description: 'It should be restarted.' },
    },
    handle: () => (health.live() ? json(200, { ok: true }) : { status: 503 }),
  }),
  route({
    ...shared,
    path: '/readyz',
    id: 'readiness',
    summary: 'Whether traffic should come here',
    responses: {
      200: { description: 'It should; `degraded` says what does not work all the same.', schema: readiness },
      503: { description: 'Not now; `reasons` says why.', schema: readiness },
    },
    handle: async () => {
      const state = await health.ready();
      return json(state.ready ? 200 : 503, state);
    },
  }),
  route({
    ...shared,
    path: '/metrics',
    id: 'metrics',
    summary: 'Metrics in the text format of Prometheus',
    responses: { 200: { description: 'The metrics.', type: 'text/plain' } },
    handle: async () => ({ status: 200, type: registry.contentType, body: await registry.metrics() }),
  }),
];

/** The description of all `routes` and of these two, made once. */
export function documentationRoutes(routes: readonly Route[]): Route[] {
  const own: Route[] = [
    route({
      ...shared,
      path: '/openapi.json',
      id: 'openapi',
      summary: 'This description',
      responses: { 200: { description: 'OpenAPI 3.1.', schema: z.looseObject({ openapi: z.string() }) } },
      handle: () => ({ status: 200, type: 'application/json', body: openapi }),
    }),
    route({
      ...shared,
      path: '/docs',
      id: 'docs',
      summary: 'This description to read',
      responses: { 200: { description: 'A page.', type: 'text/html' } },
      handle: () => ({
        status: 200,
        type: 'text/html; charset=utf-8',
        body: page,
        headers: { 'content-security-policy': DOCS_POLICY },
      }),
    }),
  ];
  const description = describeApi([...routes, ...own]);
  const openapi = JSON.stringify(description);
  const page = docsPage(description);
  return own;
}
