import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { extname, join } from 'node:path';
import type { Exchange } from './exchange.js';
import { PAGE_POLICY } from './headers.js';

const TYPES: Record<string, string> = {
  '.css': 'text/css; charset=utf-8',
  '.html': 'text/html; charset=utf-8',
  '.ico': 'image/x-icon',
  '.js': 'text/javascript; charset=utf-8',
  '.json': 'application/json',
  '.map': 'application/json',
  '.png': 'image/png',
  '.svg': 'image/svg+xml',
  '.txt': 'text/plain; charset=utf-8',
  '.webmanifest': 'application/manifest+json',
  '.woff2': 'font/woff2',
};

/** A build puts a hash of the content into the names of these, so that they never change. */
const HASHED = /-[A-Za-z0-9_-]{8,}\.[a-z0-9]+$/;

interface File {
  body: Buffer;
  type: string;
  etag: string;
  cache: string;
}

function* walk(dir: string, at: string): Generator<[path: string, file: string]> {
  for (const entry of readdirSync(dir, { withFileTypes: true })) {
    const path = `${at}/${entry.name}`;
    const file = join(dir, entry.name);
    if (entry.isDirectory()) yield* walk(file, path);
    else if (entry.isFile()) yield [path, file];
  }
}

function load(file: string): File {
  const body = readFileSync(file);
  return {
    body,
    type: TYPES[extname(file)] ?? 'application/octet-stream',
    etag: `"${createHash('sha256').update(body).digest('base64url').slice(0, 22)}"`,
    cache: HASHED.test(file) ? 'public, max-age=31536000, immutable' : 'no-cache',
  };
}

/**
 * The files of a built page, read into memory once. Only names found in the directory at the start are served, so a
 * request's path never reaches the file system.
 */
export class StaticFiles {
  readonly #files = new Map<string, File>();

  /** A directory that is missing serves nothing. */
  constructor(dir: string | undefined) {
    if (dir === undefined) return;
    try {
      for (const [path, file] of walk(dir, '')) this.#files.set(path, load(file));
    } catch (thrown) {
      if ((thrown as NodeJS.ErrnoException).code !== 'ENOENT') throw thrown;
    }
  }

  /** Answers where there is such a file and the method reads. @returns whether it answered. */
  serve(exchange: Exchange): boolean {
    const { method, path, headers } = exchange.head;
    const file = this.#files.get(path === '/' ? '/index.html' : path);
    if (!file || (method !== 'GET' && method !== 'HEAD')) return false;
    const shared = { etag: file.etag, 'cache-control': file.cache, 'content-security-policy': PAGE_POLICY };
    if (headers.get('if-none-match') === file.etag) exchange.answer(304, shared);
    else exchange.answer(200, { 'content-type': file.type, ...shared }, file.body);
    return true;
  }
}
