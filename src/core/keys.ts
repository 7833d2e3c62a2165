/** A room of a tenant, as one string: the key of feeds, topics and bus channels. Built from a verified tenant only. */
export type RoomKey = string & { readonly roomKey: unique symbol };

/** Tenant ids hold no `:`, so the first one ends the tenant. */
export const roomKey = (tenant: string, room: string): RoomKey => `${tenant}:${room}` as RoomKey;

/**
 * A channel of a tenant that is no room: `!` cannot begin a room name. Used for hints that no reader sees,
 * such as "a run was queued".
 */
export const systemKey = (tenant: string, name: string): RoomKey => `${tenant}:!${name}` as RoomKey;

export const tenantOf = (key: RoomKey): string => key.slice(0, key.indexOf(':'));
export const roomOf = (key: RoomKey): string => key.slice(key.indexOf(':') + 1);
