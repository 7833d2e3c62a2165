import postgres from 'postgres';
import { expect } from 'vitest';
import { memoryOf } from '../../bench/support/measure.js';
import { call, Undo } from '../e2e/run-stage.js';
import { type Ack, connect, type TestClient } from '../support/client.js';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { freshDatabase } from '../support/postgres.js';
import { devToken } from '../support/tokens.js';

const ACME_SECRET = 'a-secret-of-the-tenant-acme-32-bytes';

/** A token of the tenant `acme`, the bystander of every flood. */
export const acmeToken = (user: string) =>
  devToken({ user, secret: ACME_SECRET, claims: { iss: 'tutti:acme', tenant: 'acme' } });

/** A gateway with small limits, a second tenant, and hands on its database. */
export class Bounded {
  readonly undo = new Undo();

  private constructor(
    readonly gateway: GatewayProcess,
    readonly sql: postgres.Sql,
    private readonly last: () => Promise<void>,
  ) {}

  static async start(env: Record<string, string>): Promise<Bounded> {
    const { url, drop } = await freshDatabase();
    const gateway = await startGateway({ env: { DATABASE_URL: url, ...env } });
    const sql = postgres(url, { max: 4, onnotice: () => undefined });
    await sql`insert into tutti.tenants (tenant_id, name, status) values ('acme', 'acme', 'active')`;
    await sql`insert into tutti.issuers (id, tenant_id, iss, audience, algorithms, typ, keys)
      values ('acme', 'acme', 'tutti:acme', 'tutti', '{HS256}', null, ${sql.json({ kind: 'hs256', secret: ACME_SECRET })})`;
    return new Bounded(gateway, sql, async () => {
      await gateway.stop();
      await sql.end({ timeout: 1 });
      await drop();
    });
  }

  async stop(): Promise<void> {
    await this.undo.all();
    await this.last();
  }

  get url(): string {
    return this.gateway.url;
  }

  async client(token: string | Promise<string>): Promise<TestClient> {
    return this.undo.add(await connect({ url: this.url, token: await token }), (one) => one.close());
  }

  call(token: string, method: 'GET' | 'POST', path: string, body?: unknown, headers?: Record<string, string>) {
    return call(this.url, token, method, path, body, headers);
  }

  /** A metric as `/metrics` has it now; 0 where it is not there. */
  async metric(name: string): Promise<number> {
    const text = await (await fetch(`${this.url}/metrics`)).text();
    const line = text.split('\n').find((one) => one.startsWith(`${name} `));
    return Number(line?.split(' ')[1] ?? 0);
  }

  /** Bytes the gateway's process has in memory, garbage left out. Start it with `NODE_OPTIONS: memoryProbe`. */
  async resident(): Promise<number> {
    return (await memoryOf({ pid: this.gateway.pid, output: this.gateway.logs })).rss;
  }

  reached(limit: string): Promise<number> {
    return this.metric(`tutti_limit_reached_total{limit="${limit}"}`);
  }

  /** Holds a lock in the database until the returned call. Give the statement that takes it. */
  async hold(take: (tx: postgres.TransactionSql) => Promise<unknown>): Promise<() => Promise<void>> {
    let letGo = () => {};
    const until = new Promise<void>((resolve) => {
      letGo = resolve;
    });
    let taken = () => {};
    const has = new Promise<void>((resolve) => {
      taken = resolve;
    });
    const over = this.sql.begin(async (tx) => {
      await take(tx);
      taken();
      await until;
    });
    await Promise.race([has, over]);
    const release = async () => {
      letGo();
      await over;
    };
    this.undo.add(release, (one) => one());
    return release;
  }

  /** Publishes to this room of `demo` wait until the returned call; the room is made first. */
  async stick(room: string): Promise<() => Promise<void>> {
    const { status } = await this.call(await devToken(), 'POST', `/v1/rooms/${room}/events`, { type: 'a', data: 0 });
    expect(status).toBe(201);
    return this.hold((tx) => tx`select 1 from tutti.rooms where tenant_id = 'demo' and name = ${room} for update`);
  }
}

/** Answers that have come, in the order of the questions; `undefined` for those that are out. */
export function answersOf(asked: readonly Promise<Ack>[]): (Ack | undefined)[] {
  const answers = new Array<Ack | undefined>(asked.length);
  asked.forEach((one, i) => {
    one.then((ack) => {
      answers[i] = ack;
    });
  });
  return answers;
}

export const refused = (answers: readonly (Ack | undefined)[]) =>
  answers.flatMap((ack) => (ack !== undefined && !ack.ok ? [ack.error] : []));

/** A refusal that says what it is about and when to come again. */
export const overloaded = (message: RegExp) => ({
  code: 'overloaded',
  message: expect.stringMatching(message),
  retryable: true,
  retryAfterMs: expect.any(Number),
});

export const quotaExceeded = (message: RegExp) => ({
  code: 'quota_exceeded',
  message: expect.stringMatching(message),
  retryable: false,
});
