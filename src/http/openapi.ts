import { OpenAPIRegistry, OpenApiGeneratorV31 } from '@asteasolutions/zod-to-openapi';
import { z } from 'zod';
import { type ErrorCode, errors } from '../errors.js';
import { problem } from '../protocol/http.js';
import { PROBLEM_TYPE } from './problem.js';
import type { Route } from './route.js';

export type OpenApi = ReturnType<OpenApiGeneratorV31['generateDocument']>;
type Responses = Parameters<OpenAPIRegistry['registerPath']>[0]['responses'];

const TAGS = [
  { name: 'tokens', description: 'Tokens for your users.' },
  { name: 'rooms', description: 'Named places of a tenant.' },
  { name: 'events', description: "A room's ordered, durable log." },
  { name: 'runs', description: 'Inference jobs whose output a room watches.' },
  { name: 'worker', description: 'The side that computes runs.' },
  { name: 'operations', description: 'Health, metrics and this description.' },
];

/** The refusals a route may give, from what it takes. */
function codesOf(route: Route): ErrorCode[] {
  const codes = new Set<ErrorCode>(route.errors);
  codes.add('internal');
  if (route.access !== 'public' || route.params || route.query) codes.add('bad_request');
  if (route.body) codes.add('payload_too_large');
  if (route.access !== 'public') {
    for (const code of [
      'unauthenticated',
      'token_expired',
      'forbidden',
      'rate_limited',
      'overloaded',
      'log_unavailable',
      'draining',
    ] as const) {
      codes.add(code);
    }
  }
  return [...codes];
}

function responsesOf(route: Route): Responses {
  const responses: Responses = {};
  for (const [status, { description, schema, type }] of Object.entries(route.responses)) {
    const content = schema ?? (type === undefined ? undefined : z.string());
    responses[status] = {
      description,
      ...(content ? { content: { [type ?? 'application/json']: { schema: content } } } : {}),
    };
  }
  const codes = codesOf(route);
  for (const status of new Set(codes.map((code) => errors[code].status))) {
    const own = codes.filter((code) => errors[code].status === status);
    responses[String(status)] ??= {
      description: own.map((code) => `\`${code}\``).join(', '),
      content: { [PROBLEM_TYPE]: { schema: problem } },
    };
  }
  return responses;
}

const isOptional = (schema: z.ZodType): boolean => schema instanceof z.ZodOptional || schema instanceof z.ZodDefault;

/** A field of any JSON value counts as optional to the generator; whether it is due says the schema of the object. */
function requiredOf(schema: z.ZodType): { required: string[] } | undefined {
  if (!(schema instanceof z.ZodObject)) return undefined;
  const required = Object.entries(schema.shape).filter(([, field]) => !isOptional(field as z.ZodType));
  return required.length === 0 ? undefined : { required: required.map(([name]) => name) };
}

function requestOf(route: Route) {
  const { params, query, headers, body } = route;
  const content =
    body && 'json' in body
      ? { 'application/json': { schema: body.json.meta({ ...body.json.meta(), ...requiredOf(body.json) }) } }
      : body && { [body.stream]: { schema: z.string().meta({ description: body.description }) } };
  const described = Object.entries(headers ?? {}).map(([name, { description, required, schema }]) => {
    const field = (schema ?? z.string()).meta({ description, type: 'string' });
    return [name, required ? field : field.optional()] as const;
  });
  return {
    ...(params ? { params } : {}),
    ...(query ? { query } : {}),
    ...(described.length > 0 ? { headers: z.object(Object.fromEntries(described)) } : {}),
    ...(content ? { body: { content, required: true } } : {}),
  };
}

/** Describes routes from the schemas that parse them. */
export function describeApi(routes: readonly Route[]): OpenApi {
  const registry = new OpenAPIRegistry();
  registry.registerComponent('securitySchemes', 'bearer', {
    type: 'http',
    scheme: 'bearer',
    description: 'A token (JWT) or an API key.',
  });
  for (const route of routes) {
    registry.registerPath({
      method: route.method.toLowerCase() as 'get' | 'post' | 'delete',
      path: route.path.replaceAll(/:([a-z]+)/g, '{$1}'),
      operationId: route.id,
      tags: [route.tag],
      summary: route.summary,
      ...(route.description === undefined ? {} : { description: route.description }),
      security: route.access === 'public' ? [] : [{ bearer: [] }],
      request: requestOf(route),
      responses: responsesOf(route),
    });
  }
  const { webhooks, ...document } = new OpenApiGeneratorV31(registry.definitions).generateDocument({
    openapi: '3.1.0',
    info: {
      title: 'Tutti',
      version: '1',
      description:
        'Rooms with an ordered, durable log, and AI runs streamed as they arrive. Refusals are RFC 9457 problem details; ' +
        '`code` is contract, texts are not.',
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    servers: [{ url: '/' }],
    tags: TAGS,
  });
  return document;
}
