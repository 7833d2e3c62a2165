import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, rmdirSync } from 'node:fs';
import { open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** A small disk in memory, that can be full. */
export interface Disk {
  readonly directory: string;
  /** Takes every byte that is left. */
  fill(): Promise<void>;
  /** Gives them back. */
  free(): Promise<void>;
  /** Unmounts it. */
  remove(): void;
}

const CHUNK = Buffer.alloc(1024 * 1024);

/**
 * Mounts a disk of so many bytes; it goes with this process, however that ends.
 * @returns why not, where this machine does not let us.
 */
export function mountDisk(bytes: number): Disk | string {
  if (process.platform !== 'linux' || process.getuid?.() !== 0) return 'only root on Linux can mount a small disk';
  const directory = mkdtempSync(join(tmpdir(), 'tutti-disk-'));
  chmodSync(directory, 0o755);
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${bytes},mode=755`, 'tmpfs', directory]);
  if (mounted.status !== 0) {
    rmdirSync(directory);
    return `a small disk cannot be mounted: ${mounted.error?.message ?? mounted.stderr.toString().trim()}`;
  }
  const undertaker = unmountAfterUs(directory);
  const filler = join(directory, 'filler');
  return {
    directory,
    async fill() {
      const file = await open(filler, 'w');
      try {
        for (let size = CHUNK.length; size >= 4096; size = Math.floor(size / 2)) {
          while (await written(file.write(CHUNK, 0, size))) await new Promise(setImmediate);
        }
      } finally {
        await file.close();
      }
    },
    free: () => rm(filler, { force: true }),
    remove: () => void undertaker.stdin?.end(),
  };
}

/** `false` once there is no room. */
async function written(writing: Promise<{ bytesWritten: number }>): Promise<boolean> {
  try {
    return (await writing).bytesWritten > 0;
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOSPC') return false;
    throw error;
  }
}

/** A shell that waits for our end of a pipe, then unmounts: lazily, as the last processes on it may still be ending. */
function unmountAfterUs(directory: string): ChildProcess {
  const script = 'cat >/dev/null; sleep 2; umount -l "$1"; rmdir "$1"';
  const child = spawn('sh', ['-c', script, 'undertaker', directory], {
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  child.on('error', () => undefined);
  child.stdin?.on('error', () => undefined);
  child.unref();
  const pipe: unknown = child.stdin;
  if (pipe && typeof pipe === 'object' && 'unref' in pipe && typeof pipe.unref === 'function') pipe.unref();
  return child;
}
