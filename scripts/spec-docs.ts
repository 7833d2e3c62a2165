import { readFileSync, writeFileSync } from 'node:fs';
import { specPage } from './spec-page.js';

writeFileSync('docs/SPEC.md', specPage(readFileSync('docs/SPEC.md', 'utf8')));
