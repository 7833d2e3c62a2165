import { random } from '../../support/random.js';
import { Asker } from './asker.js';
import { CLIENTS_PER_USER, type LoadConfig, type LoadTenant, mint } from './config.js';
import { HttpPublisher } from './http-publisher.js';
import { HttpWorker } from './http-worker.js';
import type { Ledger } from './ledger.js';
import { Publisher } from './publisher.js';
import { Reader } from './reader.js';
import { RunStream } from './run-stream.js';
import { RunViews } from './run-views.js';
import { SdkWorker } from './sdk-worker.js';
import { StreamReader } from './stream-reader.js';
import { SocketWorker } from './worker.js';

/** All clients of one process. The lists may be changed: clients come and go by faults. */
export interface Crew {
  publishers: Publisher[];
  httpPublishers: HttpPublisher[];
  readers: Reader[];
  streamReaders: StreamReader[];
  runStreams: RunStream[];
  askers: Asker[];
  workers: SocketWorker[];
  otherWorkers: (HttpWorker | SdkWorker)[];
}

/** Clients by the config, none of them open yet. Each has a source of randomness of its own, from `next`. */
export async function makeCrew(config: LoadConfig, ledger: Ledger, next: () => number): Promise<Crew> {
  const { name, gateways, answerMs, payloadBytes, window } = config;
  const tokens = new Map<string, Promise<string>>();
  let clients = 0;
  const tokenOf = (tenant: LoadTenant) => {
    const user = `${name}-user-${Math.floor(clients++ / CLIENTS_PER_USER)}`;
    const key = `${tenant.id} ${user}`;
    const token = tokens.get(key) ?? mint(tenant, user);
    tokens.set(key, token);
    return token;
  };
  const base = () => ({ gateways, answerMs, random: random(Math.floor(next() * 2 ** 32)) });

  const crew: Crew = {
    publishers: [],
    httpPublishers: [],
    readers: [],
    streamReaders: [],
    runStreams: [],
    askers: [],
    workers: [],
    otherWorkers: [],
  };
  for (const { at, tenant, room } of places(config, config.publishers)) {
    const one = { ...base(), name: `${name}-p${at}`, tenant, room, token: await tokenOf(tenant) };
    crew.publishers.push(new Publisher(ledger, { ...one, payloadBytes, window }));
  }
  for (const { at, tenant, room } of places(config, config.httpPublishers)) {
    // A server with its key and a user with a token, in turn.
    const token = Math.floor(at / config.tenants.length) % 2 === 0 ? tenant.serverKey : await tokenOf(tenant);
    const one = { ...base(), name: `${name}-h${at}`, tenant, room, token };
    crew.httpPublishers.push(new HttpPublisher(ledger, { ...one, payloadBytes, window: 1 }));
  }
  for (const { at, tenant, room } of places(config, config.readers)) {
    const one = { ...base(), name: `${name}-r${at}`, tenant, room, token: await tokenOf(tenant) };
    crew.readers.push(new Reader(ledger, { ...one, from: at % 4 === 3 ? 'latest' : 'start' }));
  }
  for (const { at, tenant, room } of places(config, config.viewers)) {
    const one = { ...base(), name: `${name}-v${at}`, tenant, room, token: await tokenOf(tenant) };
    crew.readers.push(new Reader(ledger, { ...one, from: 'latest', views: new RunViews(ledger, one.name) }));
  }
  for (const { at, tenant, room } of places(config, config.streamReaders)) {
    const one = { ...base(), name: `${name}-s${at}`, tenant, room, token: await tokenOf(tenant) };
    crew.streamReaders.push(new StreamReader(ledger, { ...one, from: 'start' }));
  }
  for (const { at, tenant } of places(config, config.runStreams)) {
    const one = { ...base(), name: `${name}-x${at}`, tenant, token: await tokenOf(tenant) };
    crew.runStreams.push(new RunStream(ledger, one));
  }
  for (const { at, tenant } of places(config, config.runsPerSecond > 0 ? config.tenants.length : 0)) {
    const made = (run: string) => crew.runStreams.find((one) => one.tenant === tenant.id && !one.busy)?.read(run);
    const one = { ...base(), name: `${name}-a${at}`, tenant, token: await tokenOf(tenant), made };
    crew.askers.push(new Asker(ledger, one));
  }
  for (const { at, tenant } of places(config, config.workers)) {
    crew.workers.push(new SocketWorker(ledger, { ...base(), name: `${name}-k${at}`, tenant }));
  }
  for (const { at, tenant } of places(config, config.httpWorkers)) {
    crew.otherWorkers.push(new HttpWorker(ledger, { ...base(), name: `${name}-n${at}`, tenant }));
  }
  for (const { at, tenant } of places(config, config.sdkWorkers)) {
    crew.otherWorkers.push(new SdkWorker(ledger, { ...base(), name: `${name}-z${at}`, tenant }));
  }
  return crew;
}

/** `count` clients, dealt out to tenants first and then to their rooms. */
function* places({ tenants }: LoadConfig, count: number): Generator<{ at: number; tenant: LoadTenant; room: string }> {
  for (let at = 0; at < count; at++) {
    const tenant = tenants[at % tenants.length];
    const room = tenant?.rooms[Math.floor(at / tenants.length) % tenant.rooms.length];
    if (tenant && room !== undefined) yield { at, tenant, room };
  }
}

/** Everything that can be opened and closed. */
export const clientsOf = (crew: Crew): { open?(): void; close(): void }[] => [
  ...crew.publishers,
  ...crew.httpPublishers,
  ...crew.readers,
  ...crew.streamReaders,
  ...crew.runStreams,
  ...crew.askers,
  ...crew.workers,
  ...crew.otherWorkers,
];
