import { TuttiError } from '../errors.js';
import { allows, type Capabilities, type Right } from '../protocol/capabilities.js';
import type { Actor } from '../protocol/primitives.js';

/** Who acts, as verified. Built by authentication only; every key and channel derives from its `tenant`. */
export interface Principal {
  readonly kind: 'user' | 'worker' | 'server' | 'operator';
  /** `sub` of a token, or the id of an API key. */
  readonly id: string;
  readonly name?: string;
  /** The tenant, or `null` for an operator's worker key, which serves all tenants. */
  readonly tenant: string | null;
  readonly capabilities: Capabilities;
  /** When the token ends, ms since the Unix epoch; keys have no end. */
  readonly expiresAt?: number;
  /** When the token was issued, ms since the Unix epoch. */
  readonly issuedAt?: number;
  /** `jti` of the token. */
  readonly tokenId?: string;
  /** The `info` claim, shown in presence. */
  readonly info?: unknown;
}

/** The tenant of a principal that has exactly one. @throws TuttiError `forbidden` for an operator's key. */
export function tenantOfPrincipal(principal: Principal): string {
  if (principal.tenant === null) throw new TuttiError('forbidden', 'This key belongs to no tenant.');
  return principal.tenant;
}

/**
 * Every command authorises by itself with this.
 * @throws TuttiError `forbidden`, which reads the same for a room that does not exist.
 */
export function requireRight(principal: Principal, room: string, wanted: Right): string {
  const tenant = tenantOfPrincipal(principal);
  if (!allows(principal.capabilities, room, wanted)) {
    throw new TuttiError('forbidden', `Your token does not give "${wanted}" on this room.`);
  }
  return tenant;
}

/** The principal as it stands in events: no claims, no capabilities. */
export const actorOf = ({ kind, id, name }: Principal): Actor => ({
  kind,
  id,
  ...(name === undefined ? {} : { name }),
});
