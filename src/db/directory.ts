import { randomUUID } from 'node:crypto';
import type { ApiKey, Directory, Issuer, Revocation, Tenant } from '../core/directory.js';
import { textArray } from './append-batch.js';
import type { Database, Tx } from './database.js';

/** A time as ms since the Unix epoch. */
const ms = (tx: Tx, column: string) => tx`floor(extract(epoch from ${tx(column)}) * 1000)::bigint`;

const tenantColumns = (tx: Tx) => tx`tenant_id as id, name, status, ${ms(tx, 'created_at')} as "createdAt"`;
const issuerColumns = (tx: Tx) => tx`id, tenant_id as tenant, iss, audience, to_json(algorithms) as algorithms, typ,
  keys, ${ms(tx, 'created_at')} as "createdAt"`;
const keyColumns = (tx: Tx) => tx`id, tenant_id as tenant, to_json(scopes) as scopes, hash, name,
  ${ms(tx, 'created_at')} as "createdAt", ${ms(tx, 'revoked_at')} as "revokedAt"`;
const revocationColumns = (tx: Tx) => tx`id, tenant_id as tenant, kind, subject, ${ms(tx, 'at')} as at`;

/**
 * The directory in Postgres. Its callers are the operator's shell and the gateway's own checks of tokens and keys, so
 * it works across tenants. Every refusal is a TuttiError; an unreachable database is `log_unavailable`.
 */
export function createDirectory(database: Database): Directory {
  const all = <T>(work: (tx: Tx) => Promise<T>): Promise<T> => database.withTenants('*', work);

  return {
    tenant: (id) =>
      all(
        async (tx) => (await tx<Tenant[]>`select ${tenantColumns(tx)} from tutti.tenants where tenant_id = ${id}`)[0],
      ),

    tenants: () => all((tx) => tx<Tenant[]>`select ${tenantColumns(tx)} from tutti.tenants order by tenant_id`),

    async putTenant({ id, name, status }) {
      await all(
        (tx) => tx`insert into tutti.tenants (tenant_id, name, status) values (${id}, ${name}, ${status})
          on conflict (tenant_id) do update set name = excluded.name, status = excluded.status`,
      );
    },

    issuer: (iss) =>
      all(async (tx) => (await tx<Issuer[]>`select ${issuerColumns(tx)} from tutti.issuers where iss = ${iss}`)[0]),

    issuers: (tenant) =>
      all(
        (tx) => tx<Issuer[]>`select ${issuerColumns(tx)} from tutti.issuers
          where ${tenant ?? null}::text is null or tenant_id = ${tenant ?? null} order by iss`,
      ),

    async putIssuer({ id, tenant, iss, audience, algorithms, typ, keys }) {
      await all(
        (tx) => tx`insert into tutti.issuers (id, tenant_id, iss, audience, algorithms, typ, keys)
          values (${id}, ${tenant}, ${iss}, ${audience}, ${textArray(algorithms)}::text[], ${typ},
            ${JSON.stringify(keys)}::text::jsonb)
          on conflict (iss) do update set id = excluded.id, tenant_id = excluded.tenant_id,
            audience = excluded.audience, algorithms = excluded.algorithms, typ = excluded.typ, keys = excluded.keys`,
      );
    },

    async deleteIssuer(iss) {
      const gone = await all((tx) => tx`delete from tutti.issuers where iss = ${iss} returning id`);
      return gone.length > 0;
    },

    key: (id) =>
      all(async (tx) => (await tx<ApiKey[]>`select ${keyColumns(tx)} from tutti.api_keys where id = ${id}`)[0]),

    keys: (tenant) =>
      all(
        (tx) => tx<ApiKey[]>`select ${keyColumns(tx)} from tutti.api_keys
          where ${tenant ?? null}::text is null or tenant_id = ${tenant ?? null} order by created_at, id`,
      ),

    async putKey({ id, tenant, scopes, hash, name }) {
      await all(
        (tx) => tx`insert into tutti.api_keys (id, tenant_id, scopes, hash, name)
          values (${id}, ${tenant}, ${textArray(scopes)}::text[], ${hash}, ${name})
          on conflict (id) do update set tenant_id = excluded.tenant_id, scopes = excluded.scopes,
            hash = excluded.hash, name = excluded.name`,
      );
    },

    revoke: ({ tenant, kind, subject }) =>
      all(async (tx) => {
        const [revocation] = await tx<Revocation[]>`
          insert into tutti.revocations (id, tenant_id, kind, subject, at)
          values (${randomUUID()}, ${tenant}, ${kind}, ${subject}, clock_timestamp())
          returning ${revocationColumns(tx)}`;
        if (!revocation) throw new Error('An insert returned no row.');
        if (kind === 'key') {
          await tx`update tutti.api_keys set revoked_at = coalesce(revoked_at, clock_timestamp()) where id = ${subject}
            and (${tenant}::text is null or tenant_id = ${tenant})`;
        }
        return revocation;
      }),

    revocations: (since) =>
      all(
        (tx) => tx<Revocation[]>`select ${revocationColumns(tx)} from tutti.revocations
          where at >= to_timestamp(${since}::bigint / 1000.0) order by at, id`,
      ),

    revision: () =>
      all(async (tx) => (await tx<{ revision: number }[]>`select revision from tutti.directory`)[0]?.revision ?? 0),

    time: () =>
      all(async (tx) => {
        const [row] = await tx<{ time: number }[]>`
          select floor(extract(epoch from clock_timestamp()) * 1000)::bigint as time`;
        if (!row) throw new Error('A select of one row gave none.');
        return row.time;
      }),
  };
}
