import { execFileSync } from 'node:child_process';
import { linkSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** Another gateway works on this data directory. */
export class DataDirectoryInUse extends Error {
  override readonly name = 'DataDirectoryInUse';
  constructor(
    directory: string,
    readonly pid: number,
  ) {
    super(
      `Another gateway (process ${pid}) uses the data directory ${directory}. Stop it with "kill ${pid}", or give this ` +
        'one a directory of its own with TUTTI_DATA_DIR, or give both one Postgres with DATABASE_URL (and one REDIS_URL).',
    );
  }
}

/**
 * Holds a data directory for this process. A holder that is gone, however it went, does not hold it any more: the lock
 * names its pid and when that process started, so a reused pid is not taken for it.
 * @returns the release
 * @throws DataDirectoryInUse
 */
export function lockDataDirectory(directory: string): () => void {
  const path = join(directory, 'gateway.lock');
  const mine = `${process.pid} ${startOf(process.pid) ?? ''}\n`;
  const draft = `${path}.${process.pid}`;
  writeFileSync(draft, mine, { mode: 0o644 });
  try {
    while (!linked(draft, path)) {
      const held = read(path);
      if (held === undefined) continue; // released this moment
      const pid = Number(held.split(' ')[0]);
      if (held !== mine && stillRuns(held)) throw new DataDirectoryInUse(directory, pid);
      removeStale(path, held);
    }
  } finally {
    rmSync(draft, { force: true });
  }
  return () => {
    if (read(path) === mine) rmSync(path, { force: true });
  };
}

/** Whether the process that wrote a lock is there. */
function stillRuns(held: string): boolean {
  const [pid = '', ...start] = held.trim().split(' ');
  const started = /^\d+$/.test(pid) ? startOf(Number(pid)) : undefined;
  return started !== undefined && started === start.join(' ');
}

/** Takes a stale lock away; where another starter was faster and the lock is a new one, puts it back. */
function removeStale(path: string, held: string): void {
  const aside = `${path}.${process.pid}.stale`;
  try {
    renameSync(path, aside);
  } catch {
    return; // somebody else took it away
  }
  if (read(aside) !== held) linked(aside, path);
  rmSync(aside, { force: true });
}

function linked(from: string, to: string): boolean {
  try {
    linkSync(from, to);
    return true;
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'EEXIST') return false;
    throw error;
  }
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}

/** When a process started, in whatever words the system has for it; `undefined` where there is none, or a zombie. */
export function startOf(pid: number): string | undefined {
  try {
    if (process.platform === 'linux') {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
      return fields[0] === 'Z' || fields[0] === 'X' ? undefined : `${boot} ${fields[19]}`;
    }
    return execFileSync('ps', ['-o', 'lstart=', '-p', String(pid)], { encoding: 'utf8' }).trim() || undefined;
  } catch {
    return undefined;
  }
}
