import { TuttiError } from '../errors.js';
import type { ApiKey, Directory, Issuer, Tenant } from './directory.js';
import { TokenBucket } from './limits.js';
import { type KeySource, keySource } from './tokens.js';

/** Longest time a changed tenant, issuer or key may go unseen, in ms. */
const MAX_AGE_MS = 5000;
/** Names kept in memory per table: so many that were found, and so many that were not. */
const KEPT_MAX = 5000;
/** Names never seen before that may be looked up per second: a flood of random ones must not become a flood of queries. */
const UNKNOWN_PER_SECOND = 50;

/**
 * Tenants, issuers and keys as read lately: at most {@link MAX_AGE_MS} behind the directory, which is asked for its
 * revision only. Where the directory does not answer in time, every look-up refuses.
 */
export class Keyring {
  readonly #tenants: Table<Tenant>;
  readonly #issuers: Table<Issuer>;
  readonly #keys: Table<ApiKey>;
  /** By what they are made of, so that a change elsewhere does not throw away a fetched key set. */
  readonly #sources = new Map<string, KeySource>();
  readonly #maxAgeMs: number;
  #revision: number | undefined;
  #checkedAt = Number.NEGATIVE_INFINITY;
  #checking: Promise<void> | undefined;

  constructor(
    private readonly directory: Directory,
    options: { pollMs: number; now?: () => number },
  ) {
    this.now = options.now ?? (() => performance.now());
    this.#maxAgeMs = Math.min(options.pollMs, MAX_AGE_MS);
    this.#tenants = new Table((id) => directory.tenant(id), this.now);
    this.#issuers = new Table((iss) => directory.issuer(iss), this.now);
    this.#keys = new Table((id) => directory.key(id), this.now);
  }

  private readonly now: () => number;

  /** @throws TuttiError `log_unavailable` (as all look-ups here), `overloaded` in a flood of unknown names */
  tenant(id: string): Promise<Tenant | undefined> {
    return this.#look(this.#tenants, id);
  }

  issuer(iss: string): Promise<Issuer | undefined> {
    return this.#look(this.#issuers, iss);
  }

  key(id: string): Promise<ApiKey | undefined> {
    return this.#look(this.#keys, id);
  }

  /** Where the keys of an issuer come from; kept, with what it fetched, as long as the issuer's record says the same. */
  source(issuer: Issuer): KeySource {
    const made = JSON.stringify([issuer.keys, issuer.algorithms]);
    const kept = this.#sources.get(made);
    if (kept) return kept;
    const source = keySource(issuer);
    trim(this.#sources);
    this.#sources.set(made, source);
    return source;
  }

  /** The next look-up asks for the revision again: something is known to have changed. */
  expire(): void {
    this.#checkedAt = Number.NEGATIVE_INFINITY;
  }

  async #look<T>(table: Table<T>, name: string): Promise<T | undefined> {
    try {
      if (this.now() - this.#checkedAt >= this.#maxAgeMs) await this.#check();
      return await table.get(name);
    } catch (error) {
      if (error instanceof TuttiError) throw error;
      throw new TuttiError('log_unavailable', 'Credentials cannot be checked right now.', { cause: error });
    }
  }

  #check(): Promise<void> {
    this.#checking ??= this.#revise().finally(() => {
      this.#checking = undefined;
    });
    return this.#checking;
  }

  async #revise(): Promise<void> {
    const askedAt = this.now();
    const revision = await this.directory.revision();
    if (revision !== this.#revision) {
      for (const table of [this.#tenants, this.#issuers, this.#keys]) table.expire();
      this.#revision = revision;
    }
    this.#checkedAt = askedAt;
  }
}

interface Entry<T> {
  generation: number;
  row: Promise<T | undefined>;
}

/**
 * Rows by name. A name found once is looked up again after a change; a name never found is rationed, and kept apart, so
 * that a flood of random ones pushes out nobody who is known.
 */
class Table<T> {
  readonly #known = new Map<string, Entry<T>>();
  readonly #strangers = new Map<string, Entry<T>>();
  readonly #ration: TokenBucket;
  #generation = 0;

  constructor(
    private readonly read: (name: string) => Promise<T | undefined>,
    now: () => number,
  ) {
    this.#ration = new TokenBucket(UNKNOWN_PER_SECOND, 4 * UNKNOWN_PER_SECOND, now);
  }

  expire(): void {
    this.#generation += 1;
  }

  get(name: string): Promise<T | undefined> {
    const known = this.#known.get(name);
    const kept = known ?? this.#strangers.get(name);
    if (kept?.generation === this.#generation) return kept.row;
    if (!known) {
      const retryAfterMs = this.#ration.take();
      if (retryAfterMs > 0) {
        throw new TuttiError('overloaded', 'Too many unknown credentials are presented.', {
          retryAfterMs,
          limit: 'unknown_credentials',
        });
      }
    }
    const entry = { generation: this.#generation, row: this.read(name) };
    put(known ? this.#known : this.#strangers, name, entry);
    entry.row.then(
      (row) => {
        const [to, from] = row === undefined ? [this.#strangers, this.#known] : [this.#known, this.#strangers];
        if (from.get(name) !== entry) return;
        from.delete(name);
        put(to, name, entry);
      },
      () => {
        for (const map of [this.#known, this.#strangers]) {
          if (map.get(name) === entry) map.set(name, { ...entry, generation: -1 });
        }
      },
    );
    return entry.row;
  }
}

function put<T>(map: Map<string, T>, name: string, value: T): void {
  map.delete(name);
  trim(map);
  map.set(name, value);
}

/** Makes room for one more; what was put in first goes first. */
function trim(map: Map<string, unknown>): void {
  for (const oldest of map.keys()) {
    if (map.size < KEPT_MAX) return;
    map.delete(oldest);
  }
}
