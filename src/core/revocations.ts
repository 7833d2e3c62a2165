import { type Clock, systemClock } from './clock.js';
import type { Directory, Revocation } from './directory.js';
import type { Principal } from './principal.js';
import type { Logger } from './telemetry.js';

/** A revocation is read again for so long after its time, because it may have been committed later than it says. */
const COMMIT_LAG_MS = 30_000;
/**
 * Revocations are kept for so long beyond the life of the tokens they refuse: a wall clock that is ahead by less, and put
 * right later, must not have forgotten what it needs then.
 */
const CLOCK_AHEAD_MS = 3_600_000;

export interface RevocationsDeps {
  directory: Pick<Directory, 'revocations'>;
  log: Logger;
  /** How often the directory is read, in ms; bounds how long a revocation can go unseen without a hint. */
  pollMs: number;
  /** Longest life of a token, in ms: older revocations have nothing left to refuse. */
  tokenLifeMs: number;
  clock?: Clock;
}

/** What was revoked, as of the last poll. A poll that fails leaves the gateway with what it knew; see {@link Revocations.stale}. */
export class Revocations {
  readonly #known = new Map<string, Revocation>();
  /** Subject → newest time of a revocation of it. */
  readonly #latest = new Map<string, number>();
  readonly #listeners = new Set<(revocation: Revocation) => void>();
  readonly #clock: Clock;
  #newest: number;
  /** By the clock that never jumps: a wall clock put back must not make old knowledge young. */
  #readAt = Number.NEGATIVE_INFINITY;
  #polling: Promise<void> | undefined;
  #again = false;
  #cancel: (() => void) | undefined;
  #state: 'idle' | 'running' | 'stopped' = 'idle';

  constructor(private readonly deps: RevocationsDeps) {
    this.#clock = deps.clock ?? systemClock;
    this.#newest = this.#clock.now() - deps.tokenLifeMs - CLOCK_AHEAD_MS;
  }

  /** Revocations kept: those of the longest life of a token and about an hour. */
  get size(): number {
    return this.#known.size;
  }

  /** Reads for the first time and then every `pollMs`. Resolves after the first read, whether or not it worked. */
  start(): Promise<void> {
    if (this.#state !== 'idle') return Promise.resolve();
    this.#state = 'running';
    return this.#poll();
  }

  stop(): void {
    this.#state = 'stopped';
    this.#cancel?.();
  }

  /** A hint arrived: reads at once, and once more where a read is under way. */
  poke(): void {
    void this.#poll();
  }

  /** Called once for every revocation seen, those found at start too. */
  onRevoked(listener: (revocation: Revocation) => void): void {
    this.#listeners.add(listener);
  }

  /** Whether the directory could not be read for so long that nobody new may be let in. */
  stale(): boolean {
    return this.#clock.monotonic() - this.#readAt > 3 * this.deps.pollMs + 5000;
  }

  /** Whether a session of `principal` has to end because of `revocation`. */
  applies(revocation: Revocation, principal: Principal): boolean {
    if (revocation.tenant !== null && revocation.tenant !== principal.tenant) return false;
    switch (revocation.kind) {
      case 'tenant':
        return principal.tenant === revocation.subject && issuedBy(principal, revocation.at);
      case 'user':
        return principal.kind === 'user' && principal.id === revocation.subject && issuedBy(principal, revocation.at);
      case 'token':
        return principal.tokenId !== undefined && principal.tokenId === revocation.subject;
      case 'key':
        return principal.kind !== 'user' && principal.id === revocation.subject;
    }
  }

  /**
   * Whether a credential presented now is revoked. A revoked tenant's keys are good again for new sessions: revoke
   * them too, or suspend the tenant.
   */
  refuses(principal: Principal): boolean {
    const scopes = principal.tenant === null ? [null] : [principal.tenant, null];
    const revoked = (kind: Revocation['kind'], subject: string, from: number) =>
      scopes.some((tenant) => (this.#latest.get(place(kind, tenant, subject)) ?? Number.NEGATIVE_INFINITY) >= from);
    if (principal.kind !== 'user') return revoked('key', principal.id, 0);
    const issued = principal.issuedAt ?? 0;
    return (
      revoked('user', principal.id, issued) ||
      (principal.tokenId !== undefined && revoked('token', principal.tokenId, 0)) ||
      (principal.tenant !== null && revoked('tenant', principal.tenant, issued))
    );
  }

  #poll(): Promise<void> {
    if (this.#state !== 'running') return Promise.resolve();
    if (this.#polling) {
      this.#again = true;
      return this.#polling;
    }
    this.#cancel?.();
    this.#polling = this.#read().finally(() => {
      this.#polling = undefined;
      if (this.#state !== 'running') return;
      this.#cancel = this.#clock.after(this.#again ? 0 : this.deps.pollMs, () => void this.#poll());
      this.#again = false;
    });
    return this.#polling;
  }

  async #read(): Promise<void> {
    const startedAt = this.#clock.now();
    const asked = this.#clock.monotonic();
    try {
      const found = await this.deps.directory.revocations(this.#newest - COMMIT_LAG_MS);
      this.#readAt = asked;
      for (const revocation of found) this.#learn(revocation);
      this.#forget(startedAt - this.deps.tokenLifeMs - CLOCK_AHEAD_MS - 2 * COMMIT_LAG_MS);
    } catch (error) {
      this.deps.log.warn({ err: error }, 'revocations could not be read');
    }
  }

  #learn(revocation: Revocation): void {
    if (this.#known.has(revocation.id)) return;
    this.#known.set(revocation.id, revocation);
    const at = place(revocation.kind, revocation.tenant, revocation.subject);
    this.#latest.set(at, Math.max(this.#latest.get(at) ?? 0, revocation.at));
    this.#newest = Math.max(this.#newest, revocation.at);
    for (const listener of this.#listeners) listener(revocation);
  }

  #forget(before: number): void {
    for (const revocation of this.#known.values()) {
      if (revocation.at >= before) break; // oldest first, near enough
      this.#known.delete(revocation.id);
      const at = place(revocation.kind, revocation.tenant, revocation.subject);
      if (this.#latest.get(at) === revocation.at) this.#latest.delete(at);
    }
  }
}

/** `iat` counts in whole seconds: a token of the second of its revocation is taken for older. */
const issuedBy = (principal: Principal, at: number): boolean => (principal.issuedAt ?? 0) <= at;

const place = (kind: Revocation['kind'], tenant: string | null, subject: string): string =>
  JSON.stringify([kind, tenant, subject]);
