import { register } from 'node:module';

// Loaded with NODE_OPTIONS=--import before a gateway's own modules; see plants.ts.
register('./plant-hooks.mjs', import.meta.url, { data: JSON.parse(process.env.PLANTED ?? '[]') });
