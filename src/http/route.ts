import type { z } from 'zod';
import type { Principal } from '../core/principal.js';
import { type ErrorCode, TuttiError } from '../errors.js';
import { type JsonText, parse, toJsonText } from '../protocol/primitives.js';
import { type Body, parseJson } from './body.js';
import type { Exchange } from './exchange.js';

/** Who may call: anybody, any token or key, a server key, a worker key. */
export type Access = 'public' | 'any' | 'server' | 'worker';

export interface ResponseSpec {
  description: string;
  /** Of the JSON body; absent where the body is of another type or there is none. */
  schema?: z.ZodType;
  /** Media type; `application/json` where there is a schema. */
  type?: string;
}

/** What a handler gives back. Streaming handlers answer by themselves and give nothing. */
export interface Reply {
  status: number;
  type?: string;
  body?: string;
  headers?: Record<string, string>;
}

export const json = (status: number, value: unknown): Reply => jsonText(status, toJsonText(value));
export const jsonText = (status: number, body: JsonText): Reply => ({ status, body, type: 'application/json' });
export const empty = (status: number): Reply => ({ status });

export interface Call<A extends Access, P, Q, B> {
  principal: A extends 'public' ? undefined : Principal;
  params: P;
  query: Q;
  body: B;
  exchange: Exchange;
}

/** How a body is due: not at all, as JSON of a schema, or as a stream the handler reads itself. */
export type BodySpec<S extends z.ZodType> = { json: S } | { stream: string; description: string };

interface Spec<A extends Access, P extends z.ZodObject, Q extends z.ZodObject, S extends z.ZodType, B> {
  method: 'GET' | 'POST' | 'DELETE';
  /** With `:params`. */
  path: string;
  id: string;
  tag: string;
  summary: string;
  description?: string;
  access: A;
  /** A stream, a claim that waits, a body that stays open: counted as a session, not as a request being served. */
  lasting?: true;
  params?: P;
  query?: Q;
  /** Headers of its own, for the documentation; the handler reads them. */
  headers?: Record<string, { description: string; required: boolean; schema?: z.ZodType }>;
  body?: BodySpec<S>;
  responses: Record<number, ResponseSpec>;
  /** Refusals beyond those every route of its kind has. */
  errors?: readonly ErrorCode[];
  handle(call: Call<A, z.output<P>, z.output<Q>, B>): Promise<Reply | undefined> | Reply | undefined;
}

/** A request as the router found it: nothing but the route is parsed yet. */
export interface Incoming {
  exchange: Exchange;
  principal: Principal | undefined;
  params: Record<string, string>;
  query: Record<string, string>;
  body: Body | undefined;
  maxBodyBytes: number;
}

/** A declared route with its types erased. */
export type Route = Omit<Spec<Access, z.ZodObject, z.ZodObject, z.ZodType, unknown>, 'handle'> & {
  serve(incoming: Incoming): Promise<Reply | undefined>;
};

async function readBody(spec: BodySpec<z.ZodType> | undefined, incoming: Incoming): Promise<unknown> {
  if (!spec) return undefined;
  const { body } = incoming;
  if (!body) throw new TuttiError('bad_request', 'A body is due here.');
  return 'json' in spec ? parse(spec.json, parseJson(await body.text(incoming.maxBodyBytes))) : body;
}

function noQuery(query: Record<string, string>): Record<string, never> {
  const [name] = Object.keys(query);
  if (name !== undefined) throw new TuttiError('bad_request', 'This route takes no query parameters.');
  return {};
}

/**
 * Declares a route. What its schemas refuse never reaches `handle`; the same schemas describe it in `/openapi.json`.
 */
export function route<
  A extends Access,
  P extends z.ZodObject = z.ZodObject<Record<never, never>>,
  Q extends z.ZodObject = z.ZodObject<Record<never, never>>,
  S extends z.ZodType = z.ZodUndefined,
>(spec: Spec<A, P, Q, S, z.output<S>>): Route {
  const { handle, ...description } = spec;
  return {
    ...(description as unknown as Omit<Route, 'serve'>),
    async serve(incoming) {
      const params = spec.params ? parse(spec.params, incoming.params) : {};
      const query = spec.query ? parse(spec.query, incoming.query) : noQuery(incoming.query);
      const body = await readBody(spec.body, incoming);
      return handle({
        principal: incoming.principal as Call<A, unknown, unknown, unknown>['principal'],
        params: params as z.output<P>,
        query: query as z.output<Q>,
        body: body as z.output<S>,
        exchange: incoming.exchange,
      });
    },
  };
}

/** A route whose body is read as it arrives: the same as {@link route}, with a {@link Body} in the call. */
export const streamingRoute = <A extends Access, P extends z.ZodObject>(
  spec: Omit<Spec<A, P, z.ZodObject<Record<never, never>>, z.ZodType, Body>, 'body' | 'query'> & {
    body: { stream: string; description: string };
  },
): Route => route(spec as unknown as Spec<A, P, z.ZodObject<Record<never, never>>, z.ZodType, unknown>);
