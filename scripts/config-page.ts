import { z } from 'zod';
import { environment } from '../src/config.js';

interface Property {
  description?: string;
  default?: unknown;
  type?: string;
  minimum?: number;
  maximum?: number;
  enum?: string[];
  pattern?: string;
}

const kindOf = ({ type, enum: values, minimum, maximum }: Property): string => {
  if (values) return values.map((value) => `\`${value}\``).join(', ');
  if (type === 'integer' || type === 'number') return `${minimum} … ${maximum}`;
  return 'text';
};

const defaultOf = (property: Property): string =>
  property.default === undefined ? '' : `\`${property.default === '' ? '""' : property.default}\``;

/** The page docs/CONFIGURATION.md, made from the schema that reads the environment. */
export function configurationPage(): string {
  const { properties = {} } = z.toJSONSchema(environment, { io: 'input', unrepresentable: 'any' });
  const rows = Object.entries(properties as Record<string, Property>).map(
    ([name, property]) =>
      `| \`${name}\` | ${defaultOf(property)} | ${kindOf(property)} | ${(property.description ?? '').replaceAll('|', '\\|')} |`,
  );
  return [
    '# Configuration',
    '',
    'Everything is set by environment variables, read once at start. A value that cannot be used ends the process with',
    "the variable's name, what it was and what it may be. This table is generated from the schema in `src/config.ts`",
    'by `npm run docs:config`; a test holds the two together.',
    '',
    '| variable | default | may be | meaning |',
    '|---|---|---|---|',
    ...rows,
    '',
  ].join('\n');
}
