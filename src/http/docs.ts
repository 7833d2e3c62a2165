import type { OpenApi } from './openapi.js';

const escapeHtml = (text: string): string =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');

/** The little Markdown our descriptions use: code spans. */
const prose = (text: string): string => escapeHtml(text).replaceAll(/`([^`]+)`/g, '<code>$1</code>');

type Schema = { [key: string]: unknown };

const isSchema = (value: unknown): value is Schema => typeof value === 'object' && value !== null;

/** A schema in a line or two: what a reader wants to know, not all that a validator does. */
function shape(schema: unknown, indent = ''): string {
  if (!isSchema(schema)) return 'any';
  if (typeof schema.$ref === 'string') return schema.$ref.split('/').at(-1) ?? 'any';
  if (Array.isArray(schema.enum)) return schema.enum.map((value) => JSON.stringify(value)).join(' | ');
  const options = schema.anyOf ?? schema.oneOf ?? schema.allOf;
  if (Array.isArray(options)) return options.map((option) => shape(option, indent)).join(' | ');
  if (schema.type === 'array') return `${shape(schema.items, indent)}[]`;
  if (!isSchema(schema.properties)) return typeof schema.type === 'string' ? schema.type : 'any';
  const required = Array.isArray(schema.required) ? schema.required : [];
  const fields = Object.entries(schema.properties).map(
    ([name, field]) => `${indent}  ${name}${required.includes(name) ? '' : '?'}: ${shape(field, `${indent}  `)}`,
  );
  return `{\n${fields.join('\n')}\n${indent}}`;
}

function content(of: unknown): string {
  if (!isSchema(of)) return '';
  return Object.entries(of)
    .map(([type, media]) => {
      const schema = isSchema(media) ? media.schema : undefined;
      return `<p class="type">${escapeHtml(type)}</p><pre>${escapeHtml(shape(schema))}</pre>`;
    })
    .join('');
}

function parameters(of: unknown): string {
  if (!Array.isArray(of) || of.length === 0) return '';
  const rows = of.filter(isSchema).map((parameter) => {
    const schema = isSchema(parameter.schema) ? parameter.schema : {};
    const description = parameter.description ?? schema.description;
    const need = parameter.required ? '' : ', optional';
    return (
      `<tr><td><code>${escapeHtml(String(parameter.name))}</code></td><td>${escapeHtml(String(parameter.in))}${need}</td>` +
      `<td>${prose(typeof description === 'string' ? description : '')}</td></tr>`
    );
  });
  return `<table>${rows.join('')}</table>`;
}

function operation(method: string, path: string, of: Schema): string {
  const responses = Object.entries(isSchema(of.responses) ? of.responses : {}).map(([status, response]) => {
    const { description, content: body } = response as { description: string; content?: unknown };
    const shown = Number(status) < 400 ? content(body) : '';
    return `<dt>${escapeHtml(status)}</dt><dd>${prose(description)}${shown}</dd>`;
  });
  const body = isSchema(of.requestBody) ? `<h4>Body</h4>${content(of.requestBody.content)}` : '';
  const open = Array.isArray(of.security) && of.security.length === 0;
  return (
    `<article id="${escapeHtml(String(of.operationId))}"><h3><b>${escapeHtml(method.toUpperCase())}</b> ${escapeHtml(path)}</h3>` +
    `<p>${prose(String(of.summary))}${open ? '' : ' <small>bearer</small>'}</p>` +
    (typeof of.description === 'string' ? `<p>${prose(of.description)}</p>` : '') +
    `${parameters(of.parameters)}${body}<h4>Answers</h4><dl>${responses.join('')}</dl></article>`
  );
}

const STYLE = `
:root{color-scheme:light dark;--line:color-mix(in srgb,currentColor 18%,transparent)}
body{font:16px/1.55 system-ui,sans-serif;max-width:54rem;margin:0 auto;padding:2rem 1rem 6rem}
h1{font-size:1.9rem}h2{margin-top:3rem;border-bottom:1px solid var(--line)}h3{font:600 1.02rem ui-monospace,monospace}
h3 b{display:inline-block;min-width:4.2rem;color:#3b6fd4}h4{margin:.9rem 0 .3rem;font-size:.85rem;opacity:.7}
article{border:1px solid var(--line);border-radius:10px;padding:.2rem 1.1rem 1rem;margin:1rem 0}
pre{overflow:auto;padding:.7rem;border-radius:6px;background:color-mix(in srgb,currentColor 6%,transparent);font-size:.85rem}
code{font-size:.9em}small{border:1px solid var(--line);border-radius:99px;padding:0 .5rem;opacity:.75}
table{border-collapse:collapse;width:100%;font-size:.92rem}td{border-top:1px solid var(--line);padding:.35rem .5rem .35rem 0;vertical-align:top}
dl{display:grid;grid-template-columns:3.2rem 1fr;gap:.3rem;margin:0}dt{font-family:ui-monospace,monospace}dd{margin:0;min-width:0}.type{margin:.2rem 0;font-size:.8rem;opacity:.7}
nav a{display:inline-block;margin-right:1rem}`;

/** The description as one page that loads nothing and runs nothing. */
export function docsPage(api: OpenApi): string {
  const operations = Object.entries(api.paths ?? {}).flatMap(([path, methods]) =>
    Object.entries(methods ?? {}).map(([method, of]) => ({ method, path, of: of as Schema })),
  );
  const sections = (api.tags ?? []).map(({ name, description }) => {
    const own = operations.filter(({ of }) => Array.isArray(of.tags) && of.tags.includes(name));
    const articles = own.map(({ method, path, of }) => operation(method, path, of)).join('');
    return `<h2 id="${escapeHtml(name)}">${escapeHtml(name)}</h2><p>${prose(description ?? '')}</p>${articles}`;
  });
  const schemas = Object.entries(api.components?.schemas ?? {}).map(
    ([name, schema]) =>
      `<article id="${escapeHtml(name)}"><h3>${escapeHtml(name)}</h3><pre>${escapeHtml(shape(schema))}</pre></article>`,
  );
  const links = [...(api.tags ?? []).map(({ name }) => name), 'schemas'];
  return (
    `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">` +
    `<title>Tutti: HTTP</title><style>${STYLE}</style></head><body><h1>Tutti over HTTP</h1>` +
    `<p>${prose(api.info.description ?? '')} <a href="/openapi.json">openapi.json</a></p>` +
    `<nav>${links.map((name) => `<a href="#${escapeHtml(name)}">${escapeHtml(name)}</a>`).join('')}</nav>` +
    `${sections.join('')}<h2 id="schemas">schemas</h2>${schemas.join('')}</body></html>`
  );
}
