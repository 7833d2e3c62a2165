import { writeFileSync } from 'node:fs';
import { configurationPage } from './config-page.js';

writeFileSync('docs/CONFIGURATION.md', configurationPage());
