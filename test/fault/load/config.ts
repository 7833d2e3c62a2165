import { randomUUID } from 'node:crypto';
import { signToken } from '../../../src/core/tokens.js';

/** A tenant as its load sees it. Several tenants may, and should, have rooms of the same names. */
export interface LoadTenant {
  id: string;
  serverKey: string;
  workerKey: string;
  /** Stands in everything this tenant writes, and must never reach another. */
  canary: string;
  rooms: string[];
  /** Its HS256 issuer: client tokens are signed here, so that no gateway is needed for them. */
  iss: string;
  secret: string;
}

/** One load process. Clients are dealt out to the tenants and their rooms in turn. */
export interface LoadConfig {
  /** Unique among load processes and short: every mid, reader and worker begins with it. 1-8 of `[a-z0-9]`. */
  name: string;
  seed: number;
  /** File of this process's history. */
  history: string;
  /** The process may be killed: nothing leaves it before it is in its history. */
  writeAhead: boolean;
  gateways: { name: string; url: string }[];
  tenants: LoadTenant[];
  /** Publishers over sockets and over HTTP. */
  publishers: number;
  httpPublishers: number;
  /** Readers of rooms over sockets and over server-sent events. */
  readers: number;
  streamReaders: number;
  /** Readers over sockets that hold every run of their room, and readers of one run's stream at a time. */
  viewers: number;
  runStreams: number;
  /** Workers over sockets, over HTTP and with the SDK. */
  workers: number;
  httpWorkers: number;
  sdkWorkers: number;
  /** Publishes and new runs per second, over all tenants. */
  ratePerSecond: number;
  runsPerSecond: number;
  /** Publishes of one socket that may be unanswered: bounds memory while the world is slow. */
  window: number;
  /** Filler in each event, in bytes. */
  payloadBytes: number;
  /** How long a command may go unanswered before its connection is given up, in ms. */
  answerMs: number;
}

/** No clients at all, for a load that turns on what it needs. */
export const NOBODY = {
  publishers: 0,
  httpPublishers: 0,
  readers: 0,
  streamReaders: 0,
  viewers: 0,
  runStreams: 0,
  workers: 0,
  httpWorkers: 0,
  sdkWorkers: 0,
  runsPerSecond: 0,
};

const DEFAULTS = {
  seed: 1,
  writeAhead: false,
  publishers: 8,
  httpPublishers: 2,
  readers: 8,
  streamReaders: 2,
  viewers: 4,
  runStreams: 2,
  workers: 2,
  httpWorkers: 1,
  sdkWorkers: 1,
  ratePerSecond: 200,
  runsPerSecond: 2,
  window: 32,
  payloadBytes: 64,
  answerMs: 12_000,
};

/** What has to be given; the rest has defaults. */
export type LoadOptions = Pick<LoadConfig, 'name' | 'history' | 'gateways' | 'tenants'> & Partial<LoadConfig>;

/** @throws Error where something needed is missing. */
export function loadConfig(options: LoadOptions): LoadConfig {
  const config = { ...DEFAULTS, ...options };
  if (!/^[a-z0-9]{1,8}$/.test(config.name)) throw new Error('a load process has a name of 1-8 of [a-z0-9]');
  if (config.gateways.length === 0 || config.tenants.length === 0) throw new Error('no gateways or no tenants');
  if (config.tenants.some(({ rooms }) => rooms.length === 0)) throw new Error('a tenant without rooms');
  return config;
}

/** A user has so many clients of one process at most: a gateway limits the sessions of a user. */
export const CLIENTS_PER_USER = 10;

const CAP = { '*': ['join', 'publish', 'broadcast', 'run.create', 'run.cancel'] as const };
/** Tokens are this old when they are new: a gateway whose clock is behind takes none from its future. */
const BACKDATED_MS = 600_000;
const TOKEN_TTL_S = 12 * 3600;

/** A token of a user of a tenant, good for hours. */
export async function mint(tenant: LoadTenant, user: string): Promise<string> {
  const issuer = { iss: tenant.iss, audience: 'tutti', typ: null, keys: { secret: tenant.secret } };
  const cap = { '*': [...CAP['*']] };
  const body = { user, cap, ttlSeconds: TOKEN_TTL_S, id: randomUUID() };
  return (await signToken(issuer, body, Date.now() - BACKDATED_MS)).token;
}
