import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const HEADING = '## Proven by';

/** Test files under a folder, in order of name. */
function testFiles(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.test.ts'))
    .sort()
    .map((name) => join(folder, name));
}

/** Rule numbers that stand in `docs/SPEC.md` as promises. */
export const promisedRules = (page: string): string[] =>
  [...page.matchAll(/^- \*\*([A-Z]+\d+)\*\* \S/gm)].map(([, rule]) => rule ?? '');

/** Rule → titles of the tests that quote it, as `file: title`. */
export function quotedRules(folder = 'test'): Map<string, string[]> {
  const quoted = new Map<string, string[]>();
  for (const file of testFiles(folder)) {
    for (const [, , title = ''] of readFileSync(file, 'utf8').matchAll(/(['"`])((?:\[[A-Z]+\d+\] ?)+[^\n]*?)\1/g)) {
      for (const [, rule = ''] of title.matchAll(/\[([A-Z]+\d+)\]/g)) {
        const text = title.replace(/^(\[[A-Z]+\d+\] ?)+/, '');
        quoted.set(rule, [...(quoted.get(rule) ?? []), `\`${file}\`: ${text}`]);
      }
    }
  }
  return quoted;
}

/** The page with its generated list brought up to date. */
export function specPage(page: string, quoted = quotedRules()): string {
  const lines = promisedRules(page).flatMap((rule) => [
    `- **${rule}**`,
    ...(quoted.get(rule) ?? []).map((title) => `  - ${title}`),
  ]);
  return `${page.slice(0, page.indexOf(HEADING))}${HEADING}\n\n${lines.join('\n')}\n`;
}
