import type { HttpRequest, HttpResponse } from 'uWebSockets.js';
import type { Held, InFlight } from '../core/limits.js';
import type { Principal } from '../core/principal.js';
import { countLimit, type Logger, type Metrics } from '../core/telemetry.js';
import { asTuttiError, type ErrorCode, TuttiError } from '../errors.js';
import { Body } from './body.js';
import { ClientGone, Exchange, readHead } from './exchange.js';
import { API_POLICY, allowOrigin, answerPreflight, requestId, SECURITY_HEADERS } from './headers.js';
import type { AuthPort } from './ports.js';
import { refuse } from './problem.js';
import { decodeSegment, parseQuery } from './query.js';
import type { Rates } from './rates.js';
import type { Access, Route } from './route.js';
import type { StaticFiles } from './static.js';

export interface RouterDeps {
  auth: AuthPort;
  rates: Rates;
  inFlight: InFlight;
  /** Requests being served at a time; lasting ones are sessions and not counted here. */
  requestsMax: number;
  /** How many requests last. */
  lasting(): number;
  files: StaticFiles;
  metrics: Metrics;
  log: Logger;
  maxBodyBytes: number;
  allowedOrigins: readonly string[];
  /** Whether clients should go on over other connections, which a balancer leads elsewhere. */
  leaving(): boolean;
}

interface Entry {
  route: Route;
  segments: string[];
}

type Match = { route: Route; params: Record<string, string> };

/** Operations that balancers and scrapers repeat all day: logged at `debug`. */
const QUIET = new Set(['/healthz', '/readyz', '/metrics']);

/** When a client may try again that finds the gateway busy, in ms. */
const BUSY_RETRY_MS = 1000;

/** uWS takes headers of any size that arrive in one piece. A token has 16 KiB at most, see `session.refresh`. */
const MAX_HEADER_SIZE = 24 * 1024;

const JSON_TYPE = /^application\/json\s*(;\s*charset\s*=\s*"?utf-8"?\s*)?$/i;

function requireContentType(body: Route['body'], given: string | undefined): void {
  if (!body) return;
  const due = 'json' in body ? 'application/json' : body.stream;
  const fits = 'json' in body ? JSON_TYPE.test(given ?? '') : (given ?? '').split(';')[0]?.trim().toLowerCase() === due;
  if (!fits) throw new TuttiError('bad_request', `The body must be of the type ${due}.`);
}

/** One way for every request: match, authenticate, limit, parse, handle, answer, log. */
export class Router {
  readonly #entries = new Map<number, Entry[]>();
  readonly #deps: RouterDeps;
  /** Requests that are not finished, lasting ones too. */
  #requests = 0;
  readonly #held = new Map<string, Held>();

  constructor(routes: readonly Route[], deps: RouterDeps) {
    this.#deps = deps;
    deps.metrics.gauge('http_in_flight', () => this.#serving);
    for (const route of routes) {
      const segments = route.path.split('/').slice(1);
      const list = this.#entries.get(segments.length) ?? [];
      list.push({ route, segments });
      this.#entries.set(segments.length, list);
    }
  }

  /** The handler of uWS. Everything it needs of `req` is copied before it returns. */
  handle(res: HttpResponse, req: HttpRequest): void {
    const startedAt = performance.now();
    const exchange = new Exchange(res, readHead(req));
    const body = exchange.head.method === 'POST' ? new Body(exchange) : undefined;
    const id = requestId(exchange);
    if (this.#deps.leaving()) exchange.lastOfConnection();
    for (const [name, value] of SECURITY_HEADERS) exchange.setHeader(name, value);
    const seen: Seen = { id, startedAt, route: 'none', principal: undefined, code: undefined };
    this.#requests += 1;
    exchange.onFinished(() => {
      this.#requests -= 1;
      this.#finished(exchange, seen);
    });
    this.#serve(exchange, body, seen).catch((thrown) => this.#failed(exchange, seen, thrown));
  }

  async #serve(exchange: Exchange, body: Body | undefined, seen: Seen): Promise<void> {
    const { head } = exchange;
    const allowed = allowOrigin(exchange, this.#deps.allowedOrigins);
    if (head.headerSize > MAX_HEADER_SIZE) {
      const error = new TuttiError('bad_request', `The headers are larger than ${MAX_HEADER_SIZE} bytes.`);
      return refuse(exchange, { error, status: 431 });
    }
    const query = parseQuery(head.query);
    const found = this.#match(head.path);
    if (found.length === 0) {
      if (this.#deps.files.serve(exchange)) seen.route = 'static';
      else throw new TuttiError('not_found', 'There is no such route.');
      return;
    }
    if (head.method === 'OPTIONS')
      return answerPreflight(
        exchange,
        found.map(({ route }) => route.method),
        allowed,
      );
    const match = found.find(({ route }) => route.method === (head.method === 'HEAD' ? 'GET' : head.method));
    if (!match || (head.method === 'HEAD' && match.route.access !== 'public'))
      return this.#wrongMethod(exchange, found);
    const { route } = match;
    seen.route = route.path;
    if (route.access !== 'public') {
      this.#requirePlace();
      seen.principal = await this.#authenticate(exchange, route.access);
      if (!route.lasting) this.#count(exchange, seen.principal);
    }
    requireContentType(route.body, head.headers.get('content-type'));
    const reply = await route.serve({
      exchange,
      principal: seen.principal,
      params: match.params,
      query,
      body,
      maxBodyBytes: this.#deps.maxBodyBytes,
    });
    if (!reply) return;
    exchange.answer(
      reply.status,
      {
        'cache-control': 'no-store',
        ...(reply.type === undefined ? {} : { 'content-type': reply.type }),
        ...(reply.headers?.['content-security-policy'] ? {} : { 'content-security-policy': API_POLICY }),
        ...reply.headers,
      },
      reply.body,
    );
  }

  #match(path: string): Match[] {
    const parts = path.split('/').slice(1);
    const found: Match[] = [];
    for (const { route, segments } of this.#entries.get(parts.length) ?? []) {
      if (!segments.every((segment, i) => segment.startsWith(':') || segment === parts[i])) continue;
      const params: Record<string, string> = {};
      segments.forEach((segment, i) => {
        if (segment.startsWith(':')) params[segment.slice(1)] = decodeSegment(parts[i] ?? '');
      });
      found.push({ route, params });
    }
    return found;
  }

  async #authenticate(exchange: Exchange, access: Exclude<Access, 'public'>): Promise<Principal> {
    const [scheme, value, more] = (exchange.head.headers.get('authorization') ?? '').split(' ');
    if (scheme?.toLowerCase() !== 'bearer' || !value || more !== undefined) {
      throw new TuttiError('unauthenticated', 'A bearer token or API key is due in the Authorization header.');
    }
    const principal = await this.#deps.auth.bearer(value);
    if (access !== 'any' && principal.kind !== access)
      throw new TuttiError('forbidden', `A ${access} key is due here.`);
    this.#deps.rates.check(principal);
    return principal;
  }

  get #serving(): number {
    return this.#requests - this.#deps.lasting();
  }

  /** Operations such as `/healthz` are served all the same. @throws TuttiError `overloaded` */
  #requirePlace(): void {
    if (this.#serving <= this.#deps.requestsMax) return;
    throw new TuttiError('overloaded', 'This gateway serves as many requests as it can; try another, or later.', {
      retryAfterMs: BUSY_RETRY_MS,
      limit: 'http_requests',
    });
  }

  /** Counts a request and its body until it is answered. @throws TuttiError `overloaded` */
  #count(exchange: Exchange, principal: Principal): void {
    const { method, headers } = exchange.head;
    const { inFlight, maxBodyBytes } = this.#deps;
    const length = Number(headers.get('content-length') ?? Number.NaN);
    const bytes = method !== 'POST' ? 0 : length >= 0 && length <= maxBodyBytes ? length : maxBodyBytes;
    const key = `${principal.tenant ?? ''} ${principal.kind} ${principal.id}`;
    const held = this.#held.get(key) ?? { count: 0, bytes: 0 };
    inFlight.begin(held, principal.tenant, bytes);
    this.#held.set(key, held);
    exchange.onFinished(() => {
      inFlight.end(held, principal.tenant, bytes);
      if (held.count === 0) this.#held.delete(key);
    });
  }

  #wrongMethod(exchange: Exchange, found: readonly Match[]): void {
    const allow = [...found.map(({ route }) => route.method), 'OPTIONS'].join(', ');
    const error = new TuttiError('bad_request', `This route takes ${allow}.`);
    refuse(exchange, { error, status: 405, headers: { allow } });
  }

  #failed(exchange: Exchange, seen: Seen, thrown: unknown): void {
    if (thrown instanceof ClientGone) return;
    const error = asTuttiError(thrown);
    seen.code = error.code;
    countLimit(this.#deps.metrics, error.limit);
    if (error.code === 'internal') {
      this.#deps.log.error({ request: seen.id, route: seen.route, err: error.cause ?? error }, 'HTTP handler failed');
    }
    if (exchange.open) refuse(exchange, { error });
    else exchange.kill();
  }

  #finished(exchange: Exchange, { id, startedAt, route, principal, code }: Seen): void {
    const ms = performance.now() - startedAt;
    this.#deps.metrics.add('http_requests', { route, status: String(exchange.status) });
    this.#deps.metrics.observe('http', ms / 1000, { route });
    const fields = {
      request: id,
      method: exchange.head.method.slice(0, 16),
      route,
      status: exchange.status,
      ms: Math.round(ms * 10) / 10,
      ...(principal ? { tenant: principal.tenant, principal: principal.id } : {}),
      ...(code === undefined ? {} : { code }),
    };
    if (QUIET.has(route)) this.#deps.log.debug(fields, 'HTTP');
    else this.#deps.log.info(fields, 'HTTP');
  }
}

/** What is known of a request when it ends. `route` is the declared path, so that metrics have few labels. */
interface Seen {
  id: string;
  startedAt: number;
  route: string;
  principal: Principal | undefined;
  code: ErrorCode | undefined;
}
