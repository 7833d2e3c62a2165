import { execFile } from 'node:child_process';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { call } from './run-stage.js';

const root = resolve(import.meta.dirname, '../..');
const run = promisify(execFile);

/** One command of the operator's shell, in the environment of a gateway. @returns its JSON. */
export async function shell(env: Record<string, string>, ...args: string[]): Promise<Record<string, unknown>> {
  const { PATH = '', HOME = '' } = process.env;
  const command = ['--import', 'tsx', join(root, 'src/cli.ts'), '--json', ...args];
  const { stdout } = await run(process.execPath, command, { cwd: root, env: { PATH, HOME, ...env } });
  return JSON.parse(stdout) as Record<string, unknown>;
}

/** A tenant as its operator and its servers have it. */
export interface Tenant {
  id: string;
  serverKey: string;
  workerKey: string;
  /** A client token, minted with the server key. */
  mint(user: string, cap?: Record<string, string[]>): Promise<string>;
}

/** Made at the shell, for the gateways of `env`; `url` is one of them. */
export async function makeTenant(env: Record<string, string>, url: string, id: string): Promise<Tenant> {
  await shell(env, 'tenant', 'create', id);
  const keyOf = async (scope: string) =>
    String((await shell(env, 'key', 'create', '--tenant', id, '--scope', scope)).key);
  const [serverKey, workerKey] = await Promise.all([keyOf('server'), keyOf('worker')]);
  const all = { '*': ['join', 'publish', 'broadcast', 'run.create', 'run.cancel'] };
  return {
    id,
    serverKey,
    workerKey,
    async mint(user, cap = all) {
      const { status, body } = await call(url, serverKey, 'POST', '/v1/tokens', { user, cap, ttlSeconds: 600 });
      if (status !== 201) throw new Error(`mint: ${status} ${JSON.stringify(body)}`);
      return (body as { token: string }).token;
    },
  };
}
