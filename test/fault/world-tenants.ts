import { randomBytes, randomUUID } from 'node:crypto';
import { ownIssuer } from '../../src/core/auth.js';
import type { KeyScope } from '../../src/core/directory.js';
import { openDatabase } from '../../src/db/database.js';
import { createDirectory } from '../../src/db/directory.js';
import { migrate } from '../../src/db/migrate.js';
import { newKey } from '../../src/demo/bootstrap.js';

/** A tenant with all that lets in to it. */
export interface WorldTenant {
  id: string;
  serverKey: string;
  workerKey: string;
  /** Stands in everything this tenant writes, and must never be seen by another. */
  canary: string;
  rooms: string[];
  /** `iss` and secret of its issuer, to sign tokens with. */
  iss: string;
  secret: string;
}

/** Makes tenants with rooms in a new database, before there is a gateway, and brings that to the newest schema. */
export async function makeTenants(databaseUrl: string, count: number, roomsEach: number): Promise<WorldTenant[]> {
  const database = await openDatabase({ url: databaseUrl, poolSize: 2, appRole: 'tutti_app' });
  try {
    await migrate(database);
    const directory = createDirectory(database);
    const keyFor = async (tenant: string, scope: KeyScope) => {
      const made = newKey();
      await directory.putKey({ id: made.id, tenant, scopes: [scope], name: scope, hash: made.hash });
      return made.key;
    };
    const tenants: WorldTenant[] = [];
    for (let n = 1; n <= count; n++) {
      const id = `tenant-${n}`;
      const secret = randomBytes(32).toString('hex');
      await directory.putTenant({ id, name: id, status: 'active' });
      const iss = ownIssuer(id);
      await directory.putIssuer({
        id: randomUUID(),
        tenant: id,
        iss,
        audience: 'tutti',
        algorithms: ['HS256'],
        typ: null,
        keys: { kind: 'hs256', secret },
      });
      tenants.push({
        id,
        serverKey: await keyFor(id, 'server'),
        workerKey: await keyFor(id, 'worker'),
        canary: `canary${randomBytes(8).toString('hex')}`,
        rooms: Array.from({ length: roomsEach }, (_, room) => `${id}-room-${room + 1}`),
        iss,
        secret,
      });
    }
    return tenants;
  } finally {
    await database.close();
  }
}
