import { cpSync } from 'node:fs';

/* What tsc leaves behind: the migrations' SQL stands beside the compiled module that runs it. */
cpSync('src/db/migrations', 'dist/db/migrations', { recursive: true });
