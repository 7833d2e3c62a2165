import {
  type CryptoKey,
  createLocalJWKSet,
  createRemoteJWKSet,
  customFetch,
  decodeJwt,
  importJWK,
  type JWK,
  type JWTHeaderParameters,
  type JWTPayload,
  errors as jose,
  jwtVerify,
  type RemoteJWKSet,
  SignJWT,
} from 'jose';
import { z } from 'zod';
import { TuttiError } from '../errors.js';
import { type Capabilities, capabilities } from '../protocol/capabilities.js';
import { tenantId } from '../protocol/primitives.js';
import type { Issuer } from './directory.js';

/** Longest token accepted, in characters: a token with the most capability patterns allowed fits. */
const TOKEN_MAX_LENGTH = 64 * 1024;
/** Largest `info` claim, in UTF-8 bytes of JSON. */
export const INFO_MAX_BYTES = 1024;
/** How far the clocks of issuer and gateway may differ, in s. */
const CLOCK_TOLERANCE_S = 5;
/** How long a key set that could not be fetched is not asked for again, in ms. */
const JWKS_FAILURE_PAUSE_MS = 2000;
/** How long after a fetch an unknown `kid` may not cause another, in ms. */
const JWKS_COOLDOWN_MS = 30_000;
const JWKS_TIMEOUT_MS = 3000;
const JWKS_MAX_AGE_MS = 600_000;
/** Largest key set read, in bytes. */
const JWKS_MAX_BYTES = 1024 * 1024;

const ASYMMETRIC = [
  'RS256',
  'RS384',
  'RS512',
  'PS256',
  'PS384',
  'PS512',
  'ES256',
  'ES384',
  'ES512',
  'EdDSA',
  'Ed25519',
];
const BY_CURVE: Record<string, string[]> = {
  'P-256': ['ES256'],
  'P-384': ['ES384'],
  'P-521': ['ES512'],
  Ed25519: ['EdDSA', 'Ed25519'],
};

/** Algorithms a kind of key can be used with; everything else is refused whatever a record says. */
export function algorithmsOf(keys: Issuer['keys']): string[] {
  if (keys.kind === 'hs256') return ['HS256'];
  if (keys.kind === 'jwks') return ASYMMETRIC;
  if (keys.jwk.kty === 'RSA') return ASYMMETRIC.filter((algorithm) => /^[RP]S/.test(algorithm));
  return BY_CURVE[String(keys.jwk.crv)] ?? [];
}

/** Gives the key for a token's header. */
export interface KeySource {
  readonly algorithms: string[];
  /** @throws TuttiError `log_unavailable` where keys cannot be fetched; jose's errors where none fits */
  key(header: JWTHeaderParameters): Promise<CryptoKey>;
}

const PUBLIC_MEMBERS = ['kty', 'crv', 'x', 'y', 'n', 'e'];

/** The keys of an issuer. Imports and fetches happen when the first token arrives. */
export function keySource(issuer: Pick<Issuer, 'keys' | 'algorithms'>): KeySource {
  const { keys } = issuer;
  const possible = algorithmsOf(keys);
  const algorithms = issuer.algorithms.filter((algorithm) => possible.includes(algorithm));
  if (keys.kind === 'jwks') return { algorithms, key: remoteKeys(new URL(keys.url)) };
  const imported = new Map<string, Promise<CryptoKey>>();
  return {
    algorithms,
    key({ alg }) {
      const known = imported.get(alg);
      if (known) return known;
      const made = keys.kind === 'hs256' ? hmacKey(keys.secret) : publicKey(keys.jwk, alg);
      imported.set(alg, made);
      return made;
    },
  };
}

/** An HS256 secret as CryptoKey: verifying with raw bytes costs three times as much. */
const hmacKey = (secret: string): Promise<CryptoKey> =>
  crypto.subtle.importKey('raw', new TextEncoder().encode(secret), { name: 'HMAC', hash: 'SHA-256' }, false, [
    'sign',
    'verify',
  ]);

async function publicKey(jwk: Record<string, unknown>, alg: string): Promise<CryptoKey> {
  const members = Object.fromEntries(PUBLIC_MEMBERS.flatMap((name) => (name in jwk ? [[name, jwk[name]]] : [])));
  const key = await importJWK(members as JWK, alg);
  if (key instanceof Uint8Array) throw new TypeError('not a public key');
  return key;
}

/** As `fetch`, but an answer that is too large is given up before it is in memory. */
async function fetchBounded(url: string, init: RequestInit): Promise<Response> {
  const { body, status, headers } = await fetch(url, init);
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of body ?? []) {
    size += chunk.byteLength;
    if (size > JWKS_MAX_BYTES) throw new Error(`The key set is larger than ${JWKS_MAX_BYTES} bytes.`);
    chunks.push(chunk);
  }
  return new Response(Buffer.concat(chunks), { status, headers });
}

function remoteKeys(url: URL): KeySource['key'] {
  const fetched: RemoteJWKSet = createRemoteJWKSet(url, {
    timeoutDuration: JWKS_TIMEOUT_MS,
    cooldownDuration: JWKS_COOLDOWN_MS,
    cacheMaxAge: JWKS_MAX_AGE_MS,
    [customFetch]: fetchBounded,
  });
  let failedAt = Number.NEGATIVE_INFINITY;
  const unavailable = (cause?: unknown) =>
    new TuttiError('log_unavailable', 'The keys of the issuer of your token cannot be fetched right now.', {
      retryAfterMs: JWKS_FAILURE_PAUSE_MS,
      cause,
    });
  return async (header) => {
    const paused = performance.now() - failedAt < JWKS_FAILURE_PAUSE_MS;
    const kept = paused && fetched.fresh ? fetched.jwks() : undefined;
    if (paused && !kept) throw unavailable();
    try {
      return kept ? await createLocalJWKSet(kept)(header) : await fetched(header);
    } catch (error) {
      if (kept && error instanceof jose.JWKSNoMatchingKey) throw unavailable(error); // it may be a new key
      const aboutTheToken =
        error instanceof jose.JWKSNoMatchingKey ||
        error instanceof jose.JWKSMultipleMatchingKeys ||
        error instanceof jose.JOSENotSupported;
      if (aboutTheToken) throw error;
      failedAt = performance.now();
      throw unavailable(error);
    }
  };
}

/** The `iss` of a token nobody verified yet: only good for finding who might have signed it. */
export function unverifiedIssuer(token: string): string {
  if (token.length > TOKEN_MAX_LENGTH) throw refused('it is too long');
  let iss: unknown;
  try {
    iss = decodeJwt(token).iss;
  } catch {
    throw refused('it is not a JWT');
  }
  const issuer = issuerClaim.safeParse(iss);
  if (!issuer.success) throw refused('claim "iss" is not usable');
  return issuer.data;
}

/** What a verified token says. Times in s since the Unix epoch. */
export interface Claims {
  sub: string;
  iat: number;
  exp: number;
  cap: Capabilities;
  jti?: string | undefined;
  name?: string | undefined;
  info?: unknown;
  tenant?: string | undefined;
}

/** Text that is shown and stored: no control characters, which Postgres and terminals mind. */
const plainText = (max: number) =>
  z
    .string()
    .min(1)
    .max(max)
    // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
    .regex(/^[^\u0000-\u001f\u007f\p{Cs}]*$/u, 'has control characters');

const issuerClaim = plainText(512);

const claims = z.object({
  sub: plainText(256),
  iat: z.number(),
  exp: z.number(),
  cap: capabilities,
  jti: plainText(256).optional(),
  name: plainText(256).optional(),
  tenant: tenantId.optional(),
  info: z
    .unknown()
    .refine((info) => info === undefined || Buffer.byteLength(JSON.stringify(info)) <= INFO_MAX_BYTES, {
      error: `is larger than ${INFO_MAX_BYTES} bytes`,
    })
    .optional(),
});

/**
 * Verifies a token under the record of its issuer: signature, algorithm, `typ`, `iss`, `aud`, times, and the shape of
 * all claims used here.
 * @throws TuttiError `unauthenticated`, `token_expired`, or `log_unavailable` where keys cannot be fetched
 */
export async function verifyToken(
  token: string,
  issuer: Issuer,
  source: KeySource,
  options: { ttlMaxSeconds: number; nowMs: number },
): Promise<Claims> {
  let payload: JWTPayload;
  let header: JWTHeaderParameters;
  try {
    const verified = await jwtVerify(token, (protectedHeader) => source.key(protectedHeader), {
      algorithms: source.algorithms,
      issuer: issuer.iss,
      audience: issuer.audience,
      requiredClaims: ['exp', 'iat', 'sub'],
      clockTolerance: CLOCK_TOLERANCE_S,
      currentDate: new Date(options.nowMs),
    });
    payload = verified.payload;
    header = verified.protectedHeader;
  } catch (error) {
    throw whyRefused(error);
  }
  const wantedType = (issuer.typ ?? 'JWT').toLowerCase();
  const type = header.typ?.toLowerCase().replace(/^application\//, '');
  if (type === undefined ? issuer.typ !== null : type !== wantedType) throw refused(`"typ" must be ${wantedType}`);
  const parsed = claims.safeParse(payload);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw refused(`claim "${String(issue?.path[0])}" is not usable: ${issue?.message}`);
  }
  const { exp, iat } = parsed.data;
  if (iat > options.nowMs / 1000 + CLOCK_TOLERANCE_S) throw refused('it was issued in the future');
  if (exp <= iat) throw refused('it ends before it begins');
  if (exp - iat > options.ttlMaxSeconds) throw refused(`it lives longer than ${options.ttlMaxSeconds} s`);
  return parsed.data;
}

/** Signs a token under an HS256 issuer. Times in s. */
export async function signToken(
  issuer: Pick<Issuer, 'iss' | 'audience' | 'typ'> & { keys: { secret: string } },
  body: { user: string; name?: string | undefined; cap: Capabilities; ttlSeconds: number; info?: unknown; id: string },
  nowMs: number = Date.now(),
): Promise<{ token: string; expiresAt: number }> {
  const iat = Math.floor(nowMs / 1000);
  const exp = iat + body.ttlSeconds;
  const token = await new SignJWT({
    cap: body.cap,
    ...(body.name === undefined ? {} : { name: body.name }),
    ...(body.info === undefined ? {} : { info: body.info }),
  })
    .setProtectedHeader({ alg: 'HS256', typ: issuer.typ ?? 'JWT' })
    .setIssuer(issuer.iss)
    .setAudience(issuer.audience)
    .setSubject(body.user)
    .setIssuedAt(iat)
    .setExpirationTime(exp)
    .setJti(body.id)
    .sign(await hmacKey(issuer.keys.secret));
  return { token, expiresAt: exp * 1000 };
}

export const refused = (why: string): TuttiError =>
  new TuttiError('unauthenticated', `Your token is not accepted: ${why}.`.slice(0, 300));

/** jose's errors as refusals. Nothing of the token's content but the names of claims is repeated. */
function whyRefused(error: unknown): TuttiError {
  if (error instanceof TuttiError) return error;
  if (error instanceof jose.JWTExpired) return new TuttiError('token_expired', 'Your token has ended.');
  if (error instanceof jose.JWTClaimValidationFailed) {
    return refused(
      error.reason === 'missing' ? `claim "${error.claim}" is missing` : `claim "${error.claim}" is wrong`,
    );
  }
  if (error instanceof jose.JOSEAlgNotAllowed) return refused('its algorithm is not one of its issuer');
  if (error instanceof jose.JWSSignatureVerificationFailed || error instanceof jose.JWKSNoMatchingKey) {
    return refused('no key of its issuer signed it');
  }
  if (error instanceof jose.JOSEError) return refused('it is not a valid signed JWT');
  return new TuttiError('unauthenticated', 'Your token is not accepted.', { cause: error });
}
