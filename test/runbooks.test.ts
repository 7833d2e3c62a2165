import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { counters, gauges, histograms } from '../src/core/telemetry.js';

const FOLDER = 'docs/runbooks';
const ALERTS = 'deploy/prometheus/alerts.yml';
/** What promtool checks the alerts with. */
const CASES = 'deploy/prometheus/alerts.test.yml';
const names = readdirSync(FOLDER).filter((name) => name.endsWith('.md'));
const files = [...names.map((name) => join(FOLDER, name)), ALERTS];
const textOf = (file: string): string => readFileSync(file, 'utf8');
const alertNames = [...textOf(ALERTS).matchAll(/^ *- alert: (\w+)$/gm)].map(([, name = '']) => name);

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

/** The messages of all log lines, as they are written in the sources. */
const messages = [
  ...sources.matchAll(/\b(?:(?:log|logger)\.(?:debug|info|warn|error)|crash)\([^;]*?, ['`]([^'`$]+)/g),
].map(([, message = '']) => message.trim());

/** The sections of a runbook by their titles. */
const sectionsOf = (text: string): Map<string, string> =>
  new Map(
    text
      .split(/^## /m)
      .slice(1)
      .map((section) => [section.slice(0, section.indexOf('\n')), section] as const),
  );

/** Whether text quotes a log line, in code or in quotes; only the beginning of one that ends in what happened. */
function quotesLogLine(text: string): boolean {
  const flat = text.replaceAll(/\s*\n\s*/g, ' ');
  return messages.some((message) =>
    ['`', '"'].some((mark) => flat.includes(mark + message + (message.length > 20 ? '' : mark))),
  );
}

describe.each(names.filter((name) => name !== 'README.md'))('%s', (name) => {
  const sections = sectionsOf(textOf(join(FOLDER, name)));

  test('says what you see, what it means, what to do and when it is over', () => {
    for (const title of ['What you see', 'What it means', 'What to do', 'Over when'])
      expect(sections.get(title)?.length ?? 0, title).toBeGreaterThan(title.length + 40);
  });

  test('what you see names a metric and a log line; when it is over is told by a metric', () => {
    const metric = /\b(tutti|process|nodejs)_[a-z_0-9]+/;
    const seen = sections.get('What you see') ?? '';
    expect(seen).toMatch(metric);
    expect(quotesLogLine(seen), 'a log line').toBe(true);
    expect(sections.get('Over when')).toMatch(metric);
  });
});

test('the runbook of floods has every scope of a refusal', () => {
  const scopes = [...sources.matchAll(/(?:'rate_limited', \{ scope: |#require\(|#refuse\()'(\w+)'/g)].map(
    ([, scope]) => scope,
  );
  expect(new Set(scopes).size).toBe(6);
  const text = textOf(join(FOLDER, 'tenant-flood.md'));
  for (const scope of scopes) expect(text).toContain(`tutti_rate_limited_total{scope="${scope}"}`);
});

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

describe('the cases of the alerts', () => {
  const text = textOf(CASES).replaceAll(/^ *#.*\n/gm, '');
  const cases = [...text.matchAll(/^ +alertname: (\w+)\n +exp_alerts:(?: (\[\])|\n +- exp_labels: )/gm)].map(
    ([, alert, empty]) => ({ alert, fires: empty === undefined }),
  );

  test.each(alertNames)('%s fires in one and does not in another', (alert) => {
    const fires = cases.filter((one) => one.alert === alert).map((one) => one.fires);
    expect(fires).toContain(true);
    expect(fires).toContain(false);
  });

  test('all are read here, and are of alerts that there are', () => {
    expect(cases.length).toBe(text.match(/eval_time: /g)?.length);
    for (const { alert } of cases) expect(alertNames).toContain(alert);
  });

  test('their series have the labels that are exported, and those of a target', () => {
    const series = [...text.matchAll(/series: '(tutti_[a-z_]+)\{([^}]*)\}'/g)];
    expect(series.length).toBeGreaterThan(alertNames.length);
    for (const [whole, name = '', labels = ''] of series) {
      const own = exported.get(name);
      expect(own, whole).toBeDefined();
      const given = [...labels.matchAll(/(\w+)="/g)].map(([, label = '']) => label);
      const wanted = ['job', 'instance', ...(own ?? []), ...(name.endsWith('_bucket') ? ['le'] : [])];
      expect(given.toSorted(), whole).toEqual(wanted.toSorted());
    }
  });
});
