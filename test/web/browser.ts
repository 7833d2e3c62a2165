import { existsSync } from 'node:fs';
import { type Browser, chromium } from 'playwright-core';

const USUAL = [
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome',
  '/usr/bin/google-chrome-stable',
];

/** Where Chromium is: `CHROMIUM_PATH` or one of the usual places; `undefined` where there is none. */
export const chromiumPath: string | undefined = [process.env.CHROMIUM_PATH, ...USUAL].find(
  (path) => path !== undefined && path !== '' && existsSync(path),
);

/** Said where the tests of the page are skipped. */
export const NO_CHROMIUM = 'no Chromium here: install it or set CHROMIUM_PATH';

export function startBrowser(): Promise<Browser> {
  if (!chromiumPath) throw new Error(NO_CHROMIUM);
  return chromium.launch({
    executablePath: chromiumPath,
    args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking'],
  });
}
