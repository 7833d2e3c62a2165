import { defineConfig } from 'vitest/config';

// Real Postgres and Redis are started once per run by globalSetup; files get databases and prefixes of their own.
export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    globalSetup: ['test/support/global-setup.ts'],
    pool: 'forks',
    maxWorkers: 2,
    testTimeout: 30_000,
    hookTimeout: 60_000,
    teardownTimeout: 20_000,
    unstubEnvs: true,
  },
});
