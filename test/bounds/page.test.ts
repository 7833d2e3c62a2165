import { existsSync, readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { environment } from '../../src/config.js';
import { counters, gauges, histograms } from '../../src/core/telemetry.js';
import { limits } from '../../src/errors.js';

const page = readFileSync('docs/LIMITS.md', 'utf8');
const quoted = (form: RegExp) => [...new Set([...page.matchAll(form)].map(([, name = '']) => name))];

test('docs/LIMITS.md has every limit that is counted, and names settings, metrics and tests that are there', () => {
  const words = quoted(/`([a-z_]+)`/g);
  expect(limits.filter((limit) => !words.includes(limit))).toEqual([]);
  const settings = quoted(/`(TUTTI_[A-Z_]+)`/g);
  expect(settings.filter((name) => !(name in environment.shape))).toEqual([]);
  expect(quoted(/`(test\/[^`]+)`/g).filter((file) => !existsSync(file))).toEqual([]);
  const exported = [
    ...Object.keys(counters).map((name) => `${name}_total`),
    ...Object.keys(histograms).map((name) => `${name}_seconds`),
  ];
  const named = quoted(/`([a-z_]+_(?:total|seconds))(?:\{[^`]*)?`/g).filter((name) => !name.startsWith('tutti_'));
  const limitNames: readonly string[] = limits;
  expect(named.filter((name) => !exported.includes(name) && !limitNames.includes(name))).toEqual([]);
  for (const gauge of ['append_queue', 'database_waiting', 'in_flight_bytes', 'memory_share', 'ring_bytes']) {
    expect(Object.keys(gauges)).toContain(gauge);
    expect(words).toContain(gauge);
  }
});
