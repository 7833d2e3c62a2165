import { createHash, randomUUID, timingSafeEqual } from 'node:crypto';
import { TuttiError } from '../errors.js';
import { allCapabilities } from '../protocol/capabilities.js';
import type { MintBody } from '../protocol/http.js';
import type { ClockCheck } from './clock-check.js';
import type { ApiKey, Directory, Issuer } from './directory.js';
import { Keyring } from './keyring.js';
import { type Principal, tenantOfPrincipal } from './principal.js';
import type { Revocations } from './revocations.js';
import { type Claims, INFO_MAX_BYTES, refused, signToken, unverifiedIssuer, verifyToken } from './tokens.js';

/** Every API key begins so. */
export const KEY_PREFIX = 'tutti_live_';
const KEY_FORM = /^tutti_live_([A-Za-z0-9]{4,40})_([A-Za-z0-9_-]{32,128})$/;

/** `iss` of the development issuer of the tenant `demo`. */
export const DEV_ISSUER = 'tutti-dev';
/** Tenant that exists outside production only. */
export const DEMO_TENANT = 'demo';

/** `iss` of the HS256 issuer that is made with a tenant and signs what its server keys mint. */
export const ownIssuer = (tenant: string): string => (tenant === DEMO_TENANT ? DEV_ISSUER : `tutti:${tenant}`);

/** SHA-256 of the secret part of an API key, hex. */
export const hashSecret = (secret: string): string => createHash('sha256').update(secret).digest('hex');

/** An API key's id and secret. `undefined` where the text is no key. */
export function parseKey(key: string): { id: string; secret: string } | undefined {
  const match = KEY_FORM.exec(key);
  return match?.[1] && match[2] ? { id: match[1], secret: match[2] } : undefined;
}

export interface AuthenticatorDeps {
  directory: Directory;
  revocations: Revocations;
  /** Longest life a token may have, in s. */
  tokenTtlMaxSeconds: number;
  /** How often changes of tenants, issuers and keys are looked for, in ms; at most 5000 is used. */
  pollMs: number;
  /** `false` in production: the tenant `demo` and its issuer are not served even where a database has them. */
  demo: boolean;
  /** Whether this machine's clock can be trusted with the times of tokens. */
  clockCheck: Pick<ClockCheck, 'off' | 'offsetMs'>;
  /** Wall clock, ms since the Unix epoch. */
  now?: () => number;
}

/** Turns credentials into principals. A fault of a dependency denies: `log_unavailable`, which may be retried. */
export class Authenticator {
  readonly #keyring: Keyring;
  readonly #now: () => number;

  constructor(private readonly deps: AuthenticatorDeps) {
    this.#now = deps.now ?? Date.now;
    this.#keyring = new Keyring(deps.directory, { pollMs: deps.pollMs });
    deps.revocations.onRevoked(() => this.#keyring.expire());
  }

  /**
   * The user a token speaks for.
   * @throws TuttiError `unauthenticated`, `token_expired`, `forbidden` (suspended tenant), `log_unavailable`, `overloaded`
   */
  async token(token: string): Promise<Principal> {
    const iss = unverifiedIssuer(token);
    const issuer = await this.#keyring.issuer(iss);
    if (!issuer) throw refused('its issuer is not known here');
    const claims = await this.#verify(token, issuer);
    if (issuer.tenant !== null && claims.tenant !== undefined && claims.tenant !== issuer.tenant) {
      throw refused('claim "tenant" names a tenant its issuer does not speak for');
    }
    const tenant = issuer.tenant ?? claims.tenant;
    if (tenant === undefined) throw refused('claim "tenant" is missing');
    await this.#requireActive(tenant);
    const principal: Principal = {
      kind: 'user',
      id: claims.sub,
      tenant,
      capabilities: claims.cap,
      expiresAt: claims.exp * 1000,
      issuedAt: claims.iat * 1000,
      ...(claims.jti === undefined ? {} : { tokenId: claims.jti }),
      ...(claims.name === undefined ? {} : { name: claims.name }),
      ...(claims.info === undefined ? {} : { info: claims.info }),
    };
    return this.#unlessRevoked(principal);
  }

  /**
   * The server or worker an API key speaks for; `operator` for a server key of no tenant.
   * @throws TuttiError `unauthenticated`, `forbidden` (suspended tenant), `log_unavailable`, `overloaded`
   */
  async key(key: string): Promise<Principal> {
    const parts = parseKey(key);
    if (!parts) throw wrongKey();
    const record = await this.#keyring.key(parts.id);
    const given = Buffer.from(hashSecret(parts.secret), 'hex');
    const stored = Buffer.from(record?.hash ?? '', 'hex');
    const same = stored.length === given.length && timingSafeEqual(stored, given);
    if (!record || !same || record.revokedAt !== null) throw wrongKey();
    if (record.tenant !== null) await this.#requireActive(record.tenant);
    return this.#unlessRevoked(principalOfKey(record));
  }

  /** A key where it begins as one, else a token. Throws as {@link Authenticator.key} and {@link Authenticator.token}. */
  bearer(value: string): Promise<Principal> {
    return value.startsWith(KEY_PREFIX) ? this.key(value) : this.token(value);
  }

  /**
   * Signs a client token of the server key's tenant.
   * @returns `expiresAt` in ms since the Unix epoch
   * @throws TuttiError `forbidden` without a server key, `bad_request` for a life too long or an `info` too large
   */
  async mint(principal: Principal, body: MintBody): Promise<{ token: string; expiresAt: number }> {
    if (principal.kind !== 'server') throw new TuttiError('forbidden', 'Only a server key mints tokens.');
    const tenant = tenantOfPrincipal(principal);
    if (body.ttlSeconds > this.deps.tokenTtlMaxSeconds) {
      throw new TuttiError('bad_request', `ttlSeconds: is more than ${this.deps.tokenTtlMaxSeconds}`);
    }
    if (body.info !== undefined && Buffer.byteLength(JSON.stringify(body.info)) > INFO_MAX_BYTES) {
      throw new TuttiError('bad_request', `info: is larger than ${INFO_MAX_BYTES} bytes`);
    }
    const issuer = await this.#keyring.issuer(ownIssuer(tenant));
    if (!issuer || !signsHere(issuer, tenant)) {
      throw new TuttiError('forbidden', 'Your tenant has no issuer of its own to mint with.');
    }
    // By the clock that is behind: what a clock ahead signs would be issued in the future elsewhere.
    const nowMs = this.#now() + Math.min(0, this.deps.clockCheck.off ? this.deps.clockCheck.offsetMs : 0);
    const minted = await signToken(issuer, { ...body, id: randomUUID() }, nowMs);
    try {
      // What would be refused when it is used is better refused now.
      const ttlMaxSeconds = this.deps.tokenTtlMaxSeconds;
      await verifyToken(minted.token, issuer, this.#keyring.source(issuer), { ttlMaxSeconds, nowMs });
    } catch (error) {
      if (error instanceof TuttiError) throw new TuttiError('bad_request', error.message);
      throw error;
    }
    return minted;
  }

  /** What this machine's clock refuses and the database's would not is for another gateway to judge. */
  async #verify(token: string, issuer: Issuer): Promise<Claims> {
    const at = (nowMs: number) =>
      verifyToken(token, issuer, this.#keyring.source(issuer), { ttlMaxSeconds: this.deps.tokenTtlMaxSeconds, nowMs });
    const nowMs = this.#now();
    const { off, offsetMs } = this.deps.clockCheck;
    try {
      return await at(nowMs);
    } catch (refusal) {
      const byDatabase = off && (await at(nowMs + offsetMs).catch(() => undefined));
      throw byDatabase ? clockIsOff() : refusal;
    }
  }

  async #requireActive(id: string): Promise<void> {
    const tenant = id === DEMO_TENANT && !this.deps.demo ? undefined : await this.#keyring.tenant(id);
    if (!tenant) throw new TuttiError('unauthenticated', 'The tenant of your credential is not served here.');
    if (tenant.status !== 'active') throw new TuttiError('forbidden', 'This tenant is suspended.');
  }

  #unlessRevoked(principal: Principal): Principal {
    if (this.deps.revocations.stale()) {
      throw new TuttiError('log_unavailable', 'Credentials cannot be checked right now.');
    }
    if (this.deps.revocations.refuses(principal)) {
      throw new TuttiError('unauthenticated', 'Your credential was revoked.');
    }
    return principal;
  }
}

const clockIsOff = () =>
  new TuttiError('log_unavailable', 'The clock of this gateway is off, so that times of tokens cannot be checked.');

const wrongKey = () => new TuttiError('unauthenticated', 'Your API key is not accepted.');

const signsHere = (issuer: Issuer, tenant: string): issuer is Issuer & { keys: { kind: 'hs256'; secret: string } } =>
  issuer.tenant === tenant && issuer.keys.kind === 'hs256';

function principalOfKey(record: ApiKey): Principal {
  const base = { id: record.id, name: record.name, tenant: record.tenant };
  if (record.scopes.includes('worker')) return { ...base, kind: 'worker', capabilities: {} };
  if (record.tenant === null) return { ...base, kind: 'operator', capabilities: {} };
  return { ...base, kind: 'server', capabilities: allCapabilities };
}
