import { execFile } from 'node:child_process';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';

const root = resolve(import.meta.dirname, '../..');

/** What a command of the CLI prints, run against a database. @throws Error where it fails. */
export async function tutti(databaseUrl: string, ...words: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ['--import', 'tsx', join(root, 'src/cli.ts'), ...words],
    { cwd: root, env: { PATH: process.env.PATH ?? '', DATABASE_URL: databaseUrl } },
  );
  return stdout;
}
