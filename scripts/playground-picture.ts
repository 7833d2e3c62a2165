import { parseArgs } from 'node:util';
import type { Browser, BrowserContextOptions, Page } from 'playwright-core';
import { startBrowser } from '../test/web/browser.js';

/*
 * Makes the picture of the README from a running gateway with its demo worker:
 *   npx tsx scripts/playground-picture.ts [--url http://127.0.0.1:3000] [--out docs/playground.png] [--room rehearsal] [--scheme light] [--width 1200]
 * The room should be new, so that the conversation is all that is in it.
 */

const { values } = parseArgs({
  options: {
    url: { type: 'string', default: 'http://127.0.0.1:3000' },
    out: { type: 'string', default: 'docs/playground.png' },
    room: { type: 'string', default: 'rehearsal' },
    scheme: { type: 'string', default: 'light' },
    width: { type: 'string', default: '1200' },
  },
});
const HEIGHT = 760;
/** Letters of the answer that are there when the picture is taken. */
const ANSWERED = 260;
const WAIT = { timeout: 20_000 };

const ADA = { user: 'ada', name: 'Ada Moreau' };
const JONAS = { user: 'jonas', name: 'Jonas Brandt' };

/** A tab of somebody, in the room. */
async function enter(browser: Browser, me: typeof ADA, options: BrowserContextOptions): Promise<Page> {
  const context = await browser.newContext(options);
  await context.addInitScript(`sessionStorage.setItem('tutti.me', ${JSON.stringify(JSON.stringify(me))})`);
  const page = await context.newPage();
  await page.goto(`${values.url}/#room=${values.room}`);
  await page.waitForSelector('[data-status=connected]', WAIT);
  return page;
}

async function say(page: Page, text: string, ask = false): Promise<void> {
  await page.fill('#said', text);
  await page.press('#said', ask ? 'Control+Enter' : 'Enter');
  await page.locator('.message:not(.pending)', { hasText: text }).first().waitFor(WAIT);
}

const browser = await startBrowser();
try {
  const options: BrowserContextOptions = {
    viewport: { width: Number(values.width), height: HEIGHT },
    colorScheme: values.scheme === 'dark' ? 'dark' : 'light',
    locale: 'en-GB',
    reducedMotion: 'reduce',
  };
  const ada = await enter(browser, ADA, options);
  const jonas = await enter(browser, JONAS, options);
  await say(ada, 'I stopped the gateway in the middle of a sentence. My draft was still there when it came back.');
  await say(jonas, 'Same here. My tab showed “Reconnecting”, then the two messages I had missed, in order.');
  await say(ada, 'And what I typed meanwhile was stored once, not twice. Let us ask how it does that.');
  await say(jonas, 'How does a reader come back without a gap?', true);
  const answer = ada.locator('.answer[data-state=streaming] .text');
  while ((await answer.innerText(WAIT)).length < ANSWERED) await ada.waitForTimeout(50);
  await ada.screenshot({ path: values.out });
  if ((await ada.locator('.answer .stop').count()) !== 1)
    throw new Error('The answer had ended when the picture was taken.');
  await jonas.click('.answer .stop');
} finally {
  await browser.close();
}
