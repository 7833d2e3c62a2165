/** A tenant, an issuer or a key as stored. Times are ms since the Unix epoch. */
export interface Tenant {
  id: string;
  name: string;
  status: 'active' | 'suspended';
  createdAt: number;
}

/** How tokens of one `iss` are verified. Belongs to a tenant, or to the operator (`tenant` null; tokens name the tenant). */
export interface Issuer {
  id: string;
  tenant: string | null;
  iss: string;
  audience: string;
  algorithms: string[];
  /** Required `typ` header, if any. */
  typ: string | null;
  keys:
    | { kind: 'hs256'; secret: string }
    | { kind: 'jwk'; jwk: Record<string, unknown> }
    | { kind: 'jwks'; url: string };
  createdAt: number;
}

export type KeyScope = 'server' | 'worker';

/** An API key. `hash` is SHA-256 of the secret, hex; the secret itself is shown once and never stored. */
export interface ApiKey {
  id: string;
  tenant: string | null;
  scopes: KeyScope[];
  hash: string;
  name: string;
  createdAt: number;
  revokedAt: number | null;
}

/** What is no longer good: tokens of a user issued before `at`, one token by `jti`, a key, or a whole tenant. */
export interface Revocation {
  id: string;
  tenant: string | null;
  kind: 'user' | 'token' | 'key' | 'tenant';
  subject: string;
  at: number;
}

/** Tenants, issuers, keys and revocations. All of it is small; gateways cache it and poll {@link Directory.revision}. */
export interface Directory {
  tenant(id: string): Promise<Tenant | undefined>;
  tenants(): Promise<Tenant[]>;
  putTenant(tenant: Omit<Tenant, 'createdAt'>): Promise<void>;
  issuer(iss: string): Promise<Issuer | undefined>;
  issuers(tenant?: string): Promise<Issuer[]>;
  /** Adds an issuer or replaces the one of the same `iss`. */
  putIssuer(issuer: Omit<Issuer, 'createdAt'>): Promise<void>;
  deleteIssuer(iss: string): Promise<boolean>;
  key(id: string): Promise<ApiKey | undefined>;
  keys(tenant?: string): Promise<ApiKey[]>;
  putKey(key: Omit<ApiKey, 'createdAt' | 'revokedAt'>): Promise<void>;
  revoke(revocation: Omit<Revocation, 'id' | 'at'>): Promise<Revocation>;
  /** Revocations at or after a time, oldest first. */
  revocations(since: number): Promise<Revocation[]>;
  /** A number that grows with every change of a tenant, issuer or key. */
  revision(): Promise<number>;
  /** The time by the database, ms since the Unix epoch. */
  time(): Promise<number>;
}
