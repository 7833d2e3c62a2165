import type { Fault } from './fault.js';
import { gatewayFaults } from './gateways.js';
import { peopleFaults } from './people.js';
import { postgresFaults } from './postgres.js';
import { redisFaults } from './redis.js';

/** Every kind of fault there is. `storm`: sockets that come back at once. */
export const catalog = (storm: number): Fault[] => [
  ...gatewayFaults,
  ...redisFaults,
  ...postgresFaults,
  ...peopleFaults(storm),
];
