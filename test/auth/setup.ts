import { Authenticator, hashSecret, ownIssuer } from '../../src/core/auth.js';
import type { Issuer } from '../../src/core/directory.js';
import { Revocations } from '../../src/core/revocations.js';
import { DEV_SECRET } from '../support/tokens.js';
import { MemoryDirectory } from './memory-directory.js';

export const SERVER_KEY = `tutti_live_server1_${'s'.repeat(40)}`;
export const WORKER_KEY = `tutti_live_worker1_${'w'.repeat(40)}`;
const silent = { debug() {}, info() {}, warn() {}, error() {} };

export const hs256 = (tenant: string | null, iss: string, secret = DEV_SECRET): Omit<Issuer, 'createdAt'> => ({
  id: iss,
  tenant,
  iss,
  audience: 'tutti',
  algorithms: ['HS256'],
  typ: null,
  keys: { kind: 'hs256', secret },
});

/** An authenticator over a directory with the tenants `demo` and `acme`, their own issuers and two keys of `acme`. */
export async function setUp(
  options: { pollMs?: number; demo?: boolean; clock?: { off: boolean; offsetMs: number }; now?: () => number } = {},
) {
  const directory = new MemoryDirectory();
  for (const id of ['demo', 'acme']) {
    await directory.putTenant({ id, name: id, status: 'active' });
    await directory.putIssuer(hs256(id, ownIssuer(id)));
  }
  const hash = (key: string) => hashSecret(key.split('_')[3] ?? '');
  await directory.putKey({ id: 'server1', tenant: 'acme', scopes: ['server'], hash: hash(SERVER_KEY), name: 's' });
  await directory.putKey({ id: 'worker1', tenant: 'acme', scopes: ['worker'], hash: hash(WORKER_KEY), name: 'w' });
  const pollMs = options.pollMs ?? 100;
  const revocations = new Revocations({ directory, log: silent, pollMs, tokenLifeMs: 86_400_000 });
  await revocations.start();
  const auth = new Authenticator({
    directory,
    revocations,
    tokenTtlMaxSeconds: 86_400,
    pollMs,
    demo: options.demo ?? true,
    clockCheck: options.clock ?? { off: false, offsetMs: 0 },
    ...(options.now ? { now: options.now } : {}),
  });
  return { directory, revocations, auth };
}
