import { execFile } from 'node:child_process';
import { chmodSync, cpSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';

/** The last commit of the version before this one: what still runs while this one is rolled out. */
const PREVIOUS = 'a3b46ba';
const NEEDED = ['src', 'package.json', 'tsconfig.json', 'tsconfig.build.json'];

const root = resolve(import.meta.dirname, '../..');
const run = promisify(execFile);

/**
 * Builds the version before this one in a directory of its own, with the packages of this one. Give `main` to
 * `startGateway`; `end` removes the directory. Takes some seconds.
 * @returns `undefined` where the history is not there, as in a shallow clone or an archive: say so and skip.
 * @throws Error with the compiler's output where it cannot be built.
 */
export async function previousVersion(): Promise<{ main: string; end(): void } | undefined> {
  const scratch = mkdtempSync(join(tmpdir(), 'tutti-previous-'));
  const end = () => rmSync(scratch, { recursive: true, force: true });
  const archive = join(scratch, 'sources.tar');
  try {
    await run('git', ['archive', '-o', archive, PREVIOUS, ...NEEDED], { cwd: root });
  } catch {
    end();
    return undefined;
  }
  try {
    chmodSync(scratch, 0o755);
    await run('tar', ['-xf', archive], { cwd: scratch });
    symlinkSync(join(root, 'node_modules'), join(scratch, 'node_modules'));
    const tsc = join(root, 'node_modules/typescript/bin/tsc');
    await run(process.execPath, [tsc, '-p', 'tsconfig.build.json', '--noCheck'], { cwd: scratch });
    cpSync(join(scratch, 'src/db/migrations'), join(scratch, 'dist/db/migrations'), { recursive: true });
  } catch (error) {
    end();
    const { stdout = '' } = error as { stdout?: string };
    throw new Error(`${PREVIOUS} cannot be built: ${stdout || error}`, { cause: error });
  }
  return { main: join(scratch, 'dist/main.js'), end };
}
