import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { counters, gauges, histograms } from '../src/core/telemetry.js';

const FOLDER = 'docs/runbooks';
const ALERTS = 'deploy/prometheus/alerts.yml';
const names = readdirSync(FOLDER).filter((name) => name.endsWith('.md'));
const files = [...names.map((name) => join(FOLDER, name)), ALERTS];
const textOf = (file: string): string => readFileSync(file, 'utf8');

/** Names as `/metrics` exports them, with their labels. */
const exported = new Map<string, readonly string[]>([
  ...Object.entries(counters).map(([name, { labels }]) => [`tutti_${name}_total`, labels] as const),
  ...Object.entries(gauges).map(([name, { labels }]) => [`tutti_${name}`, labels] as const),
  ...Object.entries(histograms).flatMap(([name, { labels }]) =>
    ['', '_bucket', '_count', '_sum'].map((end) => [`tutti_${name}_seconds${end}`, labels] as const),
  ),
]);

/** Every log message that the sources can write; text with `${…}` in it ends there. */
const sources = readdirSync('src', { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.ts'))
  .map((name) => textOf(join('src', name)))
  .join('\n');

describe.each(files)('%s', (file) => {
  const text = textOf(file);

  test('names only metrics and labels that are exported', () => {
    for (const [, name = '', labels = ''] of text.matchAll(/\b(tutti_[a-z_]+)(?![a-z_.])(?:\{([^}]*)\})?/g)) {
      if (name === 'tutti_app') continue; // a role
      expect([...exported.keys()], `${name} in ${file}`).toContain(name);
      for (const [, label] of labels.matchAll(/(\w+)\s*=~?/g)) {
        expect(exported.get(name), `${name}{${labels}} in ${file}`).toContain(label);
      }
    }
  });

  test('its links resolve', () => {
    for (const [, target = ''] of text.matchAll(/\]\(([^)#]+)/g)) {
      if (!/^https?:/.test(target)) expect(existsSync(join(dirname(file), target)), `${target} in ${file}`).toBe(true);
    }
    for (const [, target = ''] of text.matchAll(/runbook: (\S+)/g)) expect(existsSync(target), target).toBe(true);
  });

  test('quotes only log lines that gateways write', () => {
    for (const [, message = ''] of text.matchAll(/"msg":"([^"]+)"/g)) expect(sources).toContain(message);
  });
});

test('the index lists every runbook, and every alert has one', () => {
  const index = textOf(join(FOLDER, 'README.md'));
  for (const name of names) if (name !== 'README.md') expect(index).toContain(`(${name})`);
  const alerts = textOf(ALERTS);
  expect(alerts.match(/runbook: /g)?.length).toBe(alerts.match(/- alert: /g)?.length);
});
