import { randomBytes, randomInt, randomUUID } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import type { Config } from '../config.js';
import { ConfigError } from '../config.js';
import { DEMO_TENANT, DEV_ISSUER, hashSecret, KEY_PREFIX, parseKey } from '../core/auth.js';
import type { Directory, KeyScope } from '../core/directory.js';

const kept = z.object({ secret: z.string().min(32), serverKey: z.string(), workerKey: z.string() });

/** What lets in to the tenant `demo`. */
export type DemoCredentials = z.infer<typeof kept>;

/** A new API key: 12 characters of id, 40 of secret (238 bits). */
export function newKey(): { key: string; id: string; hash: string } {
  const letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789';
  const text = (length: number) => Array.from({ length }, () => letters[randomInt(letters.length)]).join('');
  const id = text(12);
  const secret = text(40);
  return { key: `${KEY_PREFIX}${id}_${secret}`, id, hash: hashSecret(secret) };
}

/**
 * Makes the tenant `demo`, its issuer and its keys where they are missing. May run any number of times and in several
 * gateways at once. A secret in the environment is stored over an older one; without one the stored secret stays, so that
 * gateways that share a database agree: tokens are signed and verified with what is stored, never with what a gateway
 * thought up.
 * @throws ConfigError for a key that has not the form of one; Error in production
 */
export async function bootstrapDemo(config: Config, directory: Directory): Promise<DemoCredentials> {
  if (config.production) throw new Error('The tenant "demo" does not exist in production.');
  const credentials = credentialsOf(config);
  const secret = await putDemo(directory, credentials, config.TUTTI_DEV_SECRET !== undefined);
  const agreed = { ...credentials, secret };
  if (secret !== credentials.secret) keep(config.TUTTI_DATA_DIR, agreed);
  return agreed;
}

async function putDemo(directory: Directory, credentials: DemoCredentials, given: boolean): Promise<string> {
  if (!(await directory.tenant(DEMO_TENANT))) {
    await directory.putTenant({ id: DEMO_TENANT, name: 'Demo', status: 'active' });
  }
  const stored = await directory.issuer(DEV_ISSUER);
  const storedSecret = stored?.tenant === DEMO_TENANT && stored.keys.kind === 'hs256' ? stored.keys.secret : undefined;
  const secret = given ? credentials.secret : (storedSecret ?? credentials.secret);
  if (storedSecret !== secret) {
    await directory.putIssuer({
      id: stored?.id ?? randomUUID(),
      tenant: DEMO_TENANT,
      iss: DEV_ISSUER,
      audience: 'tutti',
      algorithms: ['HS256'],
      typ: null,
      keys: { kind: 'hs256', secret },
    });
  }
  await putDemoKey(directory, credentials.serverKey, 'server');
  await putDemoKey(directory, credentials.workerKey, 'worker');
  return secret;
}

async function putDemoKey(directory: Directory, key: string, scope: KeyScope): Promise<void> {
  const parts = parseKey(key);
  if (!parts) throw malformed(scope);
  const hash = hashSecret(parts.secret);
  const stored = await directory.key(parts.id);
  if (stored && stored.tenant !== DEMO_TENANT) {
    throw new ConfigError(`The development ${scope} key has the id of a key of another tenant.`);
  }
  if (stored?.hash === hash && stored.scopes[0] === scope) return;
  await directory.putKey({ id: parts.id, tenant: DEMO_TENANT, scopes: [scope], hash, name: `Development ${scope}` });
}

/** From the environment, else from the data directory, else new and kept there. */
function credentialsOf(config: Config): DemoCredentials {
  for (const scope of ['server', 'worker'] as const) {
    const key = scope === 'server' ? config.TUTTI_DEV_SERVER_KEY : config.TUTTI_DEV_WORKER_KEY;
    if (key !== undefined && !parseKey(key)) throw malformed(scope);
  }
  const { TUTTI_DEV_SECRET: secret, TUTTI_DEV_SERVER_KEY: serverKey, TUTTI_DEV_WORKER_KEY: workerKey } = config;
  if (secret && serverKey && workerKey) return { secret, serverKey, workerKey };
  const file = keptCredentials(config.TUTTI_DATA_DIR);
  return {
    secret: secret ?? file.secret,
    serverKey: serverKey ?? file.serverKey,
    workerKey: workerKey ?? file.workerKey,
  };
}

function keptCredentials(dataDir: string): DemoCredentials {
  try {
    return kept.parse(JSON.parse(readFileSync(fileIn(dataDir), 'utf8')));
  } catch {
    const made = { secret: randomBytes(32).toString('hex'), serverKey: newKey().key, workerKey: newKey().key };
    keep(dataDir, made);
    return made;
  }
}

function keep(dataDir: string, credentials: DemoCredentials): void {
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  const draft = `${fileIn(dataDir)}.${randomBytes(4).toString('hex')}`;
  writeFileSync(draft, `${JSON.stringify(credentials, null, 2)}\n`, { mode: 0o600 });
  renameSync(draft, fileIn(dataDir));
}

const fileIn = (dataDir: string): string => join(dataDir, 'development.json');

const malformed = (scope: KeyScope) =>
  new ConfigError(
    `TUTTI_DEV_${scope.toUpperCase()}_KEY is (hidden): must look like tutti_live_<id>_<secret>, with 4-40 letters or ` +
      'digits of id and 32-128 of [A-Za-z0-9_-] of secret.',
  );
