import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import type { Readable, Writable } from 'node:stream';

export interface Owned {
  readonly pid: number;
  /** Ended, where it was not started with `input`. */
  readonly stdin: Writable;
  /** What is read here is in `output`, too. */
  readonly stdout: Readable;
  readonly stderr: Readable;
  /** The exit code, or 128 + something for a signal; settles once. */
  readonly exited: Promise<number>;
  readonly running: () => boolean;
  /** Everything it wrote to stdout and stderr, at most the last 256 KiB. */
  readonly output: () => string;
  signal(signal: NodeJS.Signals): void;
  /** Signals it, waits `graceMs`, then kills it and whatever it started. */
  end(signal?: NodeJS.Signals, graceMs?: number): Promise<number>;
  /** SIGKILL to it and all its descendants at once; resolves when all of them are gone. */
  kill9(): Promise<void>;
}

export interface OwnOptions {
  env?: NodeJS.ProcessEnv;
  cwd?: string;
  user?: { uid: number; gid: number } | undefined;
  /** It is spoken to on its standard input; else that is empty. */
  input?: boolean;
  /** Sent when this process ends without having ended the child. */
  lastSignal?: 'KILL' | 'QUIT' | 'TERM';
  /** A directory to remove once this process is gone, however it went. */
  scratch?: string;
}

/**
 * Starts a process that cannot outlive this one: a shell waits on a pipe for our end, even by SIGKILL, and
 * then ends the child by its pid.
 */
export function own(command: string, args: string[], options: OwnOptions = {}): Owned {
  const child = spawn(command, args, {
    env: options.env ?? process.env,
    cwd: options.cwd,
    detached: true, // a signal to our group (Ctrl-C) must not reach it before we do
    stdio: ['pipe', 'pipe', 'pipe'],
    ...options.user,
  });
  child.stdin.on('error', () => undefined);
  if (!options.input) child.stdin.end();
  let output = '';
  const collect = (chunk: Buffer) => {
    output = (output + chunk.toString()).slice(-256 * 1024);
  };
  child.stdout.on('data', collect);
  child.stderr.on('data', collect);
  let done = false;
  let lifeline: ChildProcess | undefined;
  const exited = new Promise<number>((resolve) => {
    const finish = (code: number) => {
      done = true;
      lifeline?.kill('SIGKILL');
      resolve(code);
    };
    child.once('error', (error) => {
      output += String(error);
      finish(127);
    });
    child.once('exit', (code, signal) => finish(code ?? (signal === 'SIGKILL' ? 137 : 143)));
  });
  const pid = child.pid ?? -1;
  if (pid > 0) lifeline = watch(pid, options.lastSignal ?? 'KILL', options.scratch);
  const signal = (name: NodeJS.Signals) => {
    if (!done && pid > 0) child.kill(name);
  };
  const kill9 = async () => {
    if (pid < 0 || done) return;
    const family = [pid, ...descendants(pid)];
    for (const one of family) quietly(() => process.kill(one, 'SIGKILL'));
    await exited;
    while (family.some(alive)) await new Promise((resolve) => setTimeout(resolve, 10));
  };
  return {
    pid,
    stdin: child.stdin,
    stdout: child.stdout,
    stderr: child.stderr,
    exited,
    running: () => !done,
    output: () => output,
    signal,
    kill9,
    async end(name = 'SIGTERM', graceMs = 8000) {
      signal(name);
      const timer = setTimeout(() => void kill9(), graceMs);
      const code = await exited;
      clearTimeout(timer);
      return code;
    },
  };
}

function watch(pid: number, signal: string, scratch: string | undefined): ChildProcess {
  // An embedded Postgres of a killed gateway lives on; its pid stands in its data directory.
  const script = `cat >/dev/null; kill -s "$1" "$2" 2>/dev/null
    [ -n "$3" ] || exit 0
    for file in "$3"/*/postmaster.pid; do [ -f "$file" ] && kill -s QUIT "$(head -n 1 "$file")" 2>/dev/null; done
    sleep 1; rm -rf "$3"`;
  const child = spawn('sh', ['-c', script, 'lifeline', signal, String(pid), scratch ?? ''], {
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  child.on('error', () => undefined);
  child.unref();
  child.stdin?.on('error', () => undefined);
  const pipe: unknown = child.stdin;
  if (pipe && typeof pipe === 'object' && 'unref' in pipe && typeof pipe.unref === 'function') pipe.unref();
  return child;
}

/** Whether a process is there and not a zombie. */
function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    if (process.platform !== 'linux') return true;
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return false;
  }
}

/** Children and their children. Without /proc only the process itself is known; Postgres' children then end by themselves. */
function descendants(root: number): number[] {
  if (process.platform !== 'linux') return [];
  const parents = new Map<number, number>();
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    quietly(() => {
      const stat = readFileSync(`/proc/${entry}/stat`, 'utf8');
      const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
      parents.set(Number(entry), parent);
    });
  }
  const found = new Set([root]);
  for (let before = 0; before !== found.size; ) {
    before = found.size;
    for (const [pid, parent] of parents) if (found.has(parent)) found.add(pid);
  }
  found.delete(root);
  return [...found];
}

function quietly(action: () => void): void {
  try {
    action();
  } catch {
    // gone already
  }
}
