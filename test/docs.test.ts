import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { configurationPage } from '../scripts/config-page.js';
import { promisedRules, quotedRules, specPage } from '../scripts/spec-page.js';

const spec = readFileSync('docs/SPEC.md', 'utf8');

test('docs/CONFIGURATION.md is what `npm run docs:config` writes', () => {
  expect(readFileSync('docs/CONFIGURATION.md', 'utf8')).toBe(configurationPage());
});

test('every promise of docs/SPEC.md is quoted by a test, and every quoted one is promised', () => {
  expect([...quotedRules().keys()].sort()).toEqual(promisedRules(spec).sort());
});

test('docs/SPEC.md is what `npm run docs:spec` writes', () => {
  expect(spec).toBe(specPage(spec));
});
