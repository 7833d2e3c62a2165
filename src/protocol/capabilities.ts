import { z } from 'zod';

/** The rights a token can give on a room pattern. */
export const rights = [
  'join',
  'publish',
  'broadcast',
  'presence',
  'doc.read',
  'doc.write',
  'run.create',
  'run.cancel',
  'moderate',
] as const;
export const right = z.enum(rights);
export type Right = z.infer<typeof right>;

const roomPattern = z
  .string()
  .regex(/^(\*|[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\*?)$/, 'must be a room name, a prefix ending in *, or *');

/** The `cap` claim: room pattern → rights. Rights of all matching patterns add up. */
export const capabilities = z
  .record(roomPattern, z.array(right).max(32))
  .refine((cap) => Object.keys(cap).length <= 256, 'has more than 256 patterns')
  .meta({
    description: 'Room pattern (a name, a prefix ending in *, or *) to rights.',
    example: { '*': ['join', 'publish'] },
  });
export type Capabilities = z.infer<typeof capabilities>;

/** All rights on every room of the tenant: what a server key has. */
export const allCapabilities: Capabilities = { '*': [...rights] };

const matches = (pattern: string, room: string): boolean =>
  pattern.endsWith('*') ? room.startsWith(pattern.slice(0, -1)) : pattern === room;

/** The rights `cap` gives on `room`, in the order of {@link rights}; empty where nothing matches. */
export function rightsOn(cap: Capabilities, room: string): Right[] {
  const granted = new Set<Right>();
  for (const [pattern, list] of Object.entries(cap)) {
    if (matches(pattern, room)) for (const one of list) granted.add(one);
  }
  return rights.filter((one) => granted.has(one));
}

/** Whether `cap` gives `wanted` on `room`. */
export function allows(cap: Capabilities, room: string, wanted: Right): boolean {
  for (const [pattern, list] of Object.entries(cap)) {
    if (list.includes(wanted) && matches(pattern, room)) return true;
  }
  return false;
}
