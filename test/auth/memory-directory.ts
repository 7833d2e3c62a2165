import type { ApiKey, Directory, Issuer, Revocation, Tenant } from '../../src/core/directory.js';

/** A directory in memory that counts what it is asked and can be told to fail. */
export class MemoryDirectory implements Directory {
  readonly asked = { tenant: 0, issuer: 0, key: 0, revision: 0, revocations: 0 };
  failing = false;
  readonly #tenants = new Map<string, Tenant>();
  readonly #issuers = new Map<string, Issuer>();
  readonly #keys = new Map<string, ApiKey>();
  readonly #revocations: Revocation[] = [];
  #revision = 1;

  #ask(what: keyof MemoryDirectory['asked']): void {
    this.asked[what] += 1;
    if (this.failing) throw new Error('the database is away');
  }
  async tenant(id: string) {
    this.#ask('tenant');
    return this.#tenants.get(id);
  }
  async tenants() {
    return [...this.#tenants.values()];
  }
  async putTenant(tenant: Omit<Tenant, 'createdAt'>) {
    this.#revision += 1;
    this.#tenants.set(tenant.id, { ...tenant, createdAt: 0 });
  }
  async issuer(iss: string) {
    this.#ask('issuer');
    return this.#issuers.get(iss);
  }
  async issuers(tenant?: string) {
    return [...this.#issuers.values()].filter((one) => tenant === undefined || one.tenant === tenant);
  }
  async putIssuer(issuer: Omit<Issuer, 'createdAt'>) {
    this.#revision += 1;
    this.#issuers.set(issuer.iss, { ...issuer, createdAt: 0 });
  }
  async deleteIssuer(iss: string) {
    this.#revision += 1;
    return this.#issuers.delete(iss);
  }
  async key(id: string) {
    this.#ask('key');
    return this.#keys.get(id);
  }
  async keys(tenant?: string) {
    return [...this.#keys.values()].filter((one) => tenant === undefined || one.tenant === tenant);
  }
  async putKey(key: Omit<ApiKey, 'createdAt' | 'revokedAt'>) {
    this.#revision += 1;
    this.#keys.set(key.id, { ...key, createdAt: 0, revokedAt: null });
  }
  async revoke(revocation: Omit<Revocation, 'id' | 'at'>) {
    const made = { ...revocation, id: String(this.#revocations.length), at: Date.now() };
    this.#revocations.push(made);
    return made;
  }
  async revocations(since: number) {
    this.#ask('revocations');
    return this.#revocations.filter((one) => one.at >= since);
  }
  async revision() {
    this.#ask('revision');
    return this.#revision;
  }
  async time() {
    return Date.now();
  }
}
