import { TuttiError } from '../errors.js';

/** Query parameters that look like credentials: they would end up in logs, histories and referrers. */
const CREDENTIALS = /^(access_?token|token|id_?token|jwt|bearer|authorization|auth|api_?key|key|secret)$/i;

const malformed = () => new TuttiError('bad_request', 'The URL is not well-formed.');

/** @throws TuttiError `bad_request` for what is not percent-encoded UTF-8. */
export function decodeSegment(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw malformed();
  }
}

/**
 * The query as a record without a prototype.
 * @throws TuttiError `bad_request` for a repeated name, bad encoding, or a token in the query.
 */
export function parseQuery(query: string): Record<string, string> {
  const found: Record<string, string> = Object.create(null);
  if (query === '') return found;
  for (const pair of query.split('&')) {
    if (pair === '') continue;
    const equals = pair.indexOf('=');
    const name = decodeSegment((equals < 0 ? pair : pair.slice(0, equals)).replaceAll('+', ' '));
    const value = equals < 0 ? '' : decodeSegment(pair.slice(equals + 1).replaceAll('+', ' '));
    if (CREDENTIALS.test(name)) {
      throw new TuttiError('bad_request', 'Tokens and keys belong in the Authorization header, not in the URL.');
    }
    if (name in found) throw new TuttiError('bad_request', 'A query parameter is given twice.');
    found[name] = value;
  }
  return found;
}
