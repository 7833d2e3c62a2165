/** @type {{ module: string, find: string, put: string }[]} */
let plants = [];

export function initialize(data) {
  plants = data;
}

/** Rewrites the text of the modules named, as they are loaded. A text that is not there ends the process. */
export async function load(url, context, next) {
  const loaded = await next(url, context);
  const wanted = plants.filter(({ module }) => new RegExp(`/(src|dist)/${module}\\.[jt]s$`).test(url.split('?')[0]));
  if (wanted.length === 0) return loaded;
  let source = typeof loaded.source === 'string' ? loaded.source : Buffer.from(loaded.source).toString();
  for (const { find, put } of wanted) {
    const words = find.split(/\s+/).map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
    const text = new RegExp(words.join('\\s+'));
    if (!text.test(source)) throw new Error(`planted fault: ${url} has no "${find}"`);
    source = source.replace(text, () => put);
  }
  return { ...loaded, source };
}
