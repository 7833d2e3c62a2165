#!/usr/bin/env node
import { createPublicKey, randomBytes, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { Command } from 'commander';
import { z } from 'zod';
import { arg, duration, jsonArg, table } from './cli-arguments.js';
import { revocationsKey, type Shell, ShellError, withShell } from './cli-shell.js';
import { ConfigError } from './config.js';
import { DEMO_TENANT, ownIssuer } from './core/auth.js';
import type { Issuer, KeyScope, Revocation } from './core/directory.js';
import { roomKey } from './core/keys.js';
import { algorithmsOf, signToken } from './core/tokens.js';
import { DatabaseSetupError } from './db/roles.js';
import { newKey } from './demo/bootstrap.js';
import { TuttiError } from './errors.js';
import { type Capabilities, capabilities } from './protocol/capabilities.js';
import { roomName, tenantId, userId } from './protocol/primitives.js';

/*
 * The operator's shell. Works on the database directly. `--json` prints one JSON document instead of text.
 */

const DEFAULT_CAP: Capabilities = {
  '*': ['join', 'publish', 'broadcast', 'presence', 'run.create', 'run.cancel'],
};
const ROOMS_MAX = 500;

const program = new Command('tutti')
  .description('Manages tenants, issuers, keys and rooms of a Tutti installation.')
  .option('--json', 'print JSON')
  .showHelpAfterError('("--help" tells more)');

/** Runs a command with the database open and prints what it returns: as JSON, or by `text`. */
async function act<T>(work: (shell: Shell) => Promise<T>, text: (result: T) => string): Promise<void> {
  const result = await withShell(work);
  const json = program.opts<{ json?: boolean }>().json === true;
  process.stdout.write(`${json ? JSON.stringify(result) : text(result)}\n`);
}

async function requireTenant({ directory }: Shell, id: string) {
  const found = await directory.tenant(id);
  if (found) return found;
  if (id === DEMO_TENANT) {
    throw new ShellError(
      `There is no tenant "${id}" here: gateways outside production make it. Name one with --tenant.`,
    );
  }
  throw new ShellError(`There is no tenant "${id}". "tenant list" shows them, "tenant create ${id}" makes it.`);
}

const day = (ms: number): string => new Date(ms).toISOString().replace(/\.\d+Z$/, 'Z');
const TENANT = ['--tenant <id>', 'the tenant', arg(tenantId), DEMO_TENANT] as const;

program
  .command('token')
  .description('prints a token for a user')
  .requiredOption('--user <id>', 'who it is for', arg(userId))
  .option('--cap <json>', 'room pattern to rights', jsonArg(capabilities), DEFAULT_CAP)
  .option('--name <name>', 'shown beside what the user does', arg(z.string().min(1).max(256)))
  .option('--ttl <time>', 'how long it lives: 90s, 15m, 8h', duration, 3600)
  .option(...TENANT)
  .action((options: { user: string; cap: Capabilities; name?: string; ttl: number; tenant: string }) =>
    act(
      async (shell) => {
        await requireTenant(shell, options.tenant);
        const most = shell.config.TUTTI_TOKEN_TTL_MAX_SECONDS;
        if (options.ttl > most) throw new ShellError(`--ttl is more than TUTTI_TOKEN_TTL_MAX_SECONDS, ${most} s.`);
        const iss = ownIssuer(options.tenant);
        const issuer = await shell.directory.issuer(iss);
        if (issuer?.keys.kind !== 'hs256') {
          throw new ShellError(`Tenant "${options.tenant}" has no issuer "${iss}" to sign with.`);
        }
        const { user, cap, name, ttl: ttlSeconds } = options;
        return signToken({ ...issuer, keys: issuer.keys }, { user, cap, name, ttlSeconds, id: randomUUID() });
      },
      ({ token }) => token,
    ),
  );

const tenant = program.command('tenant').description('tenants');

tenant
  .command('create')
  .description('makes a tenant and the issuer that signs what its server keys mint')
  .argument('<id>', 'its id', arg(tenantId))
  .option('--name <name>', 'its name; the id by default')
  .action((id: string, options: { name?: string }) =>
    act(
      async ({ directory }) => {
        if (id === DEMO_TENANT) throw new ShellError(`"${DEMO_TENANT}" is made by gateways outside production.`);
        if (await directory.tenant(id)) throw new ShellError(`There is a tenant "${id}" already.`);
        await directory.putTenant({ id, name: options.name ?? id, status: 'active' });
        const secret = randomBytes(32).toString('hex');
        await directory.putIssuer(issuerRecord(id, ownIssuer(id), 'tutti', { kind: 'hs256', secret }, ['HS256']));
        return { id, issuer: ownIssuer(id) };
      },
      () => `Made tenant ${id}. Next: "key create --tenant ${id}" makes a key for its servers.`,
    ),
  );

tenant.command('list').action(() =>
  act(
    ({ directory }) => directory.tenants(),
    (list) =>
      table([['ID', 'STATUS', 'SINCE', 'NAME'], ...list.map((t) => [t.id, t.status, day(t.createdAt), t.name])]),
  ),
);

for (const [verb, status, done] of [
  ['suspend', 'suspended', 'Suspended'],
  ['resume', 'active', 'Resumed'],
] as const) {
  tenant
    .command(verb)
    .argument('<id>', 'its id', arg(tenantId))
    .action((id: string) =>
      act(
        async (shell) => {
          const found = await requireTenant(shell, id);
          await shell.directory.putTenant({ id, name: found.name, status });
          if (status === 'suspended') await revoke(shell, { tenant: id, kind: 'tenant', subject: id });
          return { id, status };
        },
        () => `${done} tenant ${id}.`,
      ),
    );
}

const key = program.command('key').description('API keys of servers and workers');

key
  .command('create')
  .description('prints a new key; it is shown this once')
  .option(...TENANT)
  .option('--operator', 'a worker key that serves all tenants')
  .option('--scope <scope>', 'server or worker', arg(z.enum(['server', 'worker'])), 'server')
  .option('--name <name>', 'what it is for', arg(z.string().min(1).max(256)), 'unnamed')
  .action((options: { tenant: string; operator?: true; scope: KeyScope; name: string }) =>
    act(
      async (shell) => {
        if (options.operator && options.scope !== 'worker') throw new ShellError('--operator needs --scope worker.');
        if (!options.operator) await requireTenant(shell, options.tenant);
        const made = newKey();
        const owner = options.operator ? null : options.tenant;
        const record = { id: made.id, tenant: owner, scopes: [options.scope], name: options.name };
        await shell.directory.putKey({ ...record, hash: made.hash });
        return { ...record, key: made.key };
      },
      (made) => made.key,
    ),
  );

key
  .command('list')
  .option('--tenant <id>', 'only of this tenant', arg(tenantId))
  .action((options: { tenant?: string }) =>
    act(
      async ({ directory }) => (await directory.keys(options.tenant)).map(({ hash: _, ...shown }) => shown),
      (list) =>
        table([
          ['ID', 'TENANT', 'SCOPE', 'SINCE', 'STATE', 'NAME'],
          ...list.map((k) => [
            k.id,
            k.tenant ?? '(operator)',
            k.scopes.join(','),
            day(k.createdAt),
            k.revokedAt === null ? 'good' : 'revoked',
            k.name,
          ]),
        ]),
    ),
  );

key
  .command('revoke')
  .argument('<id>', 'id of the key')
  .action((id: string) => revokeKey(id));

const issuer = program.command('issuer').description('who signs tokens, and how they are verified');

interface IssuerOptions {
  iss: string;
  tenant: string;
  operator?: true;
  audience: string;
  algorithms?: string;
  typ?: string;
  hs256?: string;
  jwk?: string;
  jwks?: string;
}

issuer
  .command('add')
  .description('adds an issuer, or replaces the one of the same iss')
  .requiredOption('--iss <iss>', 'the exact "iss" claim', arg(z.string().min(1).max(512)))
  .option(...TENANT)
  .option('--operator', 'speaks for all tenants: its tokens name one in the claim "tenant"')
  .option('--audience <aud>', 'the "aud" claim', 'tutti')
  .option('--algorithms <list>', 'comma-separated; what the key allows by default')
  .option('--typ <typ>', 'the "typ" header its tokens must have')
  .option('--hs256 <file>', 'a file with a secret of at least 32 bytes, "-" for standard input')
  .option('--jwk <file>', 'a file with a public key, as JWK or PEM')
  .option('--jwks <url>', 'where its public keys are published', arg(z.url({ protocol: /^https?$/ })))
  .action((options: IssuerOptions) =>
    act(
      async (shell) => {
        if (!options.operator) await requireTenant(shell, options.tenant);
        const owner = options.operator ? null : options.tenant;
        const present = await shell.directory.issuer(options.iss);
        if (present && present.tenant !== owner) throw new ShellError('Another tenant has an issuer of this iss.');
        const keys = await keysOf(options);
        const possible = algorithmsOf(keys);
        if (possible.length === 0) throw new ShellError('No algorithm known here works with this kind of key.');
        const algorithms = options.algorithms?.split(',').map((name) => name.trim()) ?? possible;
        const wrong = algorithms.find((name) => !possible.includes(name));
        if (wrong !== undefined)
          throw new ShellError(`"${wrong}" is not possible here; these are: ${possible.join(', ')}.`);
        const record = issuerRecord(owner, options.iss, options.audience, keys, algorithms, options.typ ?? null);
        await shell.directory.putIssuer(record);
        return { iss: record.iss, tenant: owner, kind: keys.kind, algorithms };
      },
      (added) => `Added issuer ${added.iss} (${added.algorithms.join(', ')}).`,
    ),
  );

issuer
  .command('list')
  .option('--tenant <id>', 'only of this tenant', arg(tenantId))
  .action((options: { tenant?: string }) =>
    act(
      async ({ directory }) =>
        (await directory.issuers(options.tenant)).map(({ keys, ...shown }) => ({
          ...shown,
          kind: keys.kind,
          ...(keys.kind === 'jwks' ? { url: keys.url } : {}),
        })),
      (list) =>
        table([
          ['ISS', 'TENANT', 'AUDIENCE', 'KEYS', 'ALGORITHMS'],
          ...list.map((i) => [i.iss, i.tenant ?? '(operator)', i.audience, i.url ?? i.kind, i.algorithms.join(',')]),
        ]),
    ),
  );

issuer
  .command('remove')
  .argument('<iss>', 'the exact "iss"')
  .action((iss: string) =>
    act(
      async ({ directory }) => {
        if (!(await directory.deleteIssuer(iss))) throw new ShellError(`There is no issuer "${iss}".`);
        return { iss };
      },
      () => `Removed issuer ${iss}. Open sessions last until their tokens end; "revoke tenant" ends them now.`,
    ),
  );

const room = program.command('room').description('rooms and their logs');

room
  .command('list')
  .option(...TENANT)
  .option('--after <room>', 'only rooms after this name', arg(roomName))
  .action((options: { tenant: string; after?: string }) =>
    act(
      async (shell) => {
        await requireTenant(shell, options.tenant);
        return shell.log.list(options.tenant, options.after, ROOMS_MAX);
      },
      (list) =>
        table([
          ['ROOM', 'HEAD', 'FLOOR', 'SINCE', 'EPOCH'],
          ...list.map((r) => [r.room, String(r.head), String(r.floor), day(r.createdAt), r.epoch]),
        ]),
    ),
  );

room
  .command('show')
  .argument('<room>', 'its name', arg(roomName))
  .option(...TENANT)
  .action((name: string, options: { tenant: string }) =>
    act(
      async (shell) => {
        const found = await shell.log.summary(options.tenant, name);
        if (!found) throw new ShellError(`Tenant "${options.tenant}" has no room "${name}".`);
        return found;
      },
      (found) => table(Object.entries(found).map(([field, value]) => [field, String(value)])),
    ),
  );

room
  .command('erase')
  .description('erases a room with its events and runs, for good')
  .argument('<room>', 'its name', arg(roomName))
  .option(...TENANT)
  .requiredOption('--yes', 'that it is meant')
  .action((name: string, options: { tenant: string }) =>
    act(
      async (shell) => {
        if (!(await shell.log.erase(options.tenant, name))) {
          throw new ShellError(`Tenant "${options.tenant}" has no room "${name}".`);
        }
        await shell.announce(roomKey(options.tenant, name), 'erased');
        return { tenant: options.tenant, room: name };
      },
      () => `Erased room ${name}.`,
    ),
  );

program
  .command('epochs')
  .description('the epochs of rooms, which say whether positions from before mean anything')
  .command('advance')
  .description('tells every reader to start over: after a restore that could not be noticed, or in doubt')
  .option('--tenant <id>', 'only rooms of this tenant', arg(tenantId))
  .requiredOption('--yes', 'that it is meant')
  .action((options: { tenant?: string }) =>
    act(
      async (shell) => {
        if (options.tenant !== undefined) await requireTenant(shell, options.tenant);
        return { rooms: await shell.advanceEpochs(options.tenant) };
      },
      ({ rooms }) => `Advanced the epochs of ${rooms} rooms. Gateways find out within TUTTI_HEAD_CHECK_MS.`,
    ),
  );

const revocation = program.command('revoke').description('ends sessions and refuses what was issued until now');

for (const [kind, what] of [
  ['user', 'all tokens of a user issued until now'],
  ['token', 'one token, by its "jti"'],
] as const) {
  revocation
    .command(kind)
    .description(what)
    .argument('<id>', kind === 'user' ? 'the user' : 'the "jti"')
    .option(...TENANT)
    .action((subject: string, options: { tenant: string }) =>
      act(
        async (shell) => {
          await requireTenant(shell, options.tenant);
          return revoke(shell, { tenant: options.tenant, kind, subject });
        },
        () => `Revoked ${kind} ${subject}.`,
      ),
    );
}
revocation
  .command('key')
  .description('an API key, by its id')
  .argument('<id>', 'id of the key')
  .action((id: string) => revokeKey(id));
revocation
  .command('tenant')
  .description('all tokens of a tenant issued until now; see also "tenant suspend"')
  .argument('<id>', 'the tenant', arg(tenantId))
  .action((id: string) =>
    act(
      async (shell) => {
        await requireTenant(shell, id);
        return revoke(shell, { tenant: id, kind: 'tenant', subject: id });
      },
      () => `Revoked the tokens of tenant ${id}.`,
    ),
  );

const revokeKey = (id: string) =>
  act(
    async (shell) => {
      const found = await shell.directory.key(id);
      if (!found) throw new ShellError(`There is no key with the id "${id}". "key list" shows them.`);
      return revoke(shell, { tenant: found.tenant, kind: 'key', subject: id });
    },
    () => `Revoked key ${id}.`,
  );

async function revoke(shell: Shell, what: Omit<Revocation, 'id' | 'at'>): Promise<Revocation> {
  const made = await shell.directory.revoke(what);
  await shell.announce(revocationsKey, made.kind);
  return made;
}

const issuerRecord = (
  owner: string | null,
  iss: string,
  audience: string,
  keys: Issuer['keys'],
  algorithms: string[],
  typ: string | null = null,
): Omit<Issuer, 'createdAt'> => ({ id: randomUUID(), tenant: owner, iss, audience, algorithms, typ, keys });

async function keysOf({ hs256, jwk, jwks }: IssuerOptions): Promise<Issuer['keys']> {
  if ([hs256, jwk, jwks].filter((given) => given !== undefined).length !== 1) {
    throw new ShellError('Give exactly one of --hs256, --jwk and --jwks.');
  }
  if (jwks !== undefined) return { kind: 'jwks', url: jwks };
  if (jwk !== undefined) return { kind: 'jwk', jwk: await publicJwk(readText(jwk)) };
  const secret = readText(hs256 ?? '').trim();
  if (Buffer.byteLength(secret) < 32) throw new ShellError('The secret is shorter than 32 bytes.');
  return { kind: 'hs256', secret };
}

async function publicJwk(text: string): Promise<Record<string, unknown>> {
  if (text.includes('PRIVATE KEY')) throw new ShellError('This is a private key; only the public one belongs here.');
  try {
    const pem = text.trimStart().startsWith('-----');
    const parsed: unknown = pem ? createPublicKey(text).export({ format: 'jwk' }) : JSON.parse(text);
    const checked = z.looseObject({ kty: z.enum(['RSA', 'EC', 'OKP']) }).parse(parsed);
    if ('d' in checked) throw new ShellError('This JWK holds a private key; only the public one belongs here.');
    return checked;
  } catch (error) {
    if (error instanceof ShellError) throw error;
    throw new ShellError('This is neither a public key in PEM nor a JWK of type RSA, EC or OKP.');
  }
}

function readText(file: string): string {
  try {
    return readFileSync(file === '-' ? 0 : file, 'utf8');
  } catch (error) {
    throw new ShellError(`${file} cannot be read: ${error instanceof Error ? error.message : error}`);
  }
}

try {
  await program.parseAsync();
} catch (error) {
  const known = [ShellError, TuttiError, ConfigError, DatabaseSetupError].some((kind) => error instanceof kind);
  process.stderr.write(
    `${known && error instanceof Error ? error.message : (error instanceof Error && error.stack) || error}\n`,
  );
  process.exitCode = 1;
}
