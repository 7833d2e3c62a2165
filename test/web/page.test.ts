import type { Browser, BrowserContextOptions, Page } from 'playwright-core';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { type GatewayProcess, startGateway } from '../support/gateway.js';
import { freshDatabase } from '../support/postgres.js';
import { devToken } from '../support/tokens.js';
import { chromiumPath, NO_CHROMIUM, startBrowser } from './browser.js';

const WAIT = { timeout: 20_000 };
const name = chromiumPath ? 'the page in a real browser' : `the page in a real browser (skipped: ${NO_CHROMIUM})`;

describe.skipIf(!chromiumPath)(name, { timeout: 90_000 }, () => {
  let browser: Browser;
  let database: Awaited<ReturnType<typeof freshDatabase>>;
  let gateway: GatewayProcess;
  let complaints: string[] = [];
  let roomNumber = 0;

  beforeAll(async () => {
    database = await freshDatabase();
    gateway = await startGateway({ env: { DATABASE_URL: database.url, TUTTI_DEMO_WORKER: 'true' } });
    browser = await startBrowser();
  }, 90_000);
  afterEach(async () => {
    for (const context of browser.contexts()) await context.close();
    expect(complaints.splice(0), 'errors of the page').toEqual([]);
    complaints = [];
  });
  afterAll(async () => {
    await browser?.close();
    await gateway?.stop();
    await database?.drop();
  });

  /** A tab of a browser of its own, joined. */
  async function open(room: string, options: BrowserContextOptions = {}): Promise<Page> {
    const page = await (await browser.newContext(options)).newPage();
    page.on('pageerror', (error) => complaints.push(error.message));
    page.on('console', (line) => {
      if (/Content.Security.Policy|Uncaught/i.test(line.text())) complaints.push(line.text());
    });
    await page.goto(`${gateway.url}/#room=${room}`);
    await connected(page);
    return page;
  }
  const connected = (page: Page) => page.waitForSelector('[data-status=connected]', WAIT);
  const freshRoom = () => `page-${++roomNumber}`;
  async function say(page: Page, text: string, ask = false): Promise<void> {
    await page.fill('#said', text);
    await page.press('#said', ask ? 'Control+Enter' : 'Enter');
  }
  const said = (page: Page) => page.locator('.message:not(.pending) .body > p:not(.meta)').allTextContents();
  const seqs = async (page: Page) => (await page.locator('.message .seq').allTextContents()).map(Number);
  const shows = (page: Page, text: string) =>
    page.locator('.message:not(.pending)', { hasText: text }).first().waitFor(WAIT);
  const answerText = (page: Page) => page.locator('.answer .text').first().innerText();

  test("[FEED1] two tabs see each other's messages in one order", async () => {
    const room = freshRoom();
    const one = await open(room);
    const two = await open(room);
    for (let i = 0; i < 5; i++) {
      await say(one, `one ${i}`);
      await say(two, `two ${i}`);
    }
    for (const page of [one, two]) for (const text of ['one 4', 'two 4']) await shows(page, text);
    expect(await said(two)).toEqual(await said(one));
    expect(await seqs(one)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    const own = (await said(one)).filter((text) => text.startsWith('one'));
    expect(own).toEqual([0, 1, 2, 3, 4].map((i) => `one ${i}`));
  });

  test('text is shown as it was typed: markup in it stays text', async () => {
    const page = await open(freshRoom());
    const hostile = '<img src=x onerror="document.title=1"> <b>bold</b>';
    await say(page, hostile);
    await shows(page, hostile);
    expect(await page.locator('.message img, .message b').count()).toBe(0);
  });

  test('[LOG4] [RES1] nothing typed while the gateway is gone is lost; the tabs come back by themselves', async () => {
    const room = freshRoom();
    const one = await open(room);
    const two = await open(room);
    await say(one, 'before');
    await shows(two, 'before');
    const { port, env } = gateway;
    await gateway.kill9();
    await one.waitForSelector('[data-status=waiting]', WAIT);
    for (let i = 0; i < 3; i++) await say(one, `away ${i}`);
    await say(two, 'me too');
    await one.fill('#said', 'a draft');
    expect(await one.locator('.pending').count()).toBe(3);
    gateway = await startGateway({ env, port });
    for (const page of [one, two]) for (const text of ['away 2', 'me too']) await shows(page, text);
    // Not waitForFunction: from its second look on it needs eval, which the page's policy forbids.
    await expect.poll(() => one.locator('.pending').count(), WAIT).toBe(0);
    expect(await said(one)).toEqual(await said(two));
    expect((await said(one)).filter((text) => text.startsWith('away'))).toEqual(['away 0', 'away 1', 'away 2']);
    expect(await seqs(one)).toEqual([1, 2, 3, 4, 5]);
    expect(await one.inputValue('#said')).toBe('a draft');
  });

  test('[RUN1] [RUN4] an answer streams into both tabs, and into a third that joins in the middle', async () => {
    const room = freshRoom();
    const one = await open(room);
    const two = await open(room);
    await say(one, 'How do rooms keep their order?', true);
    // At once: in turn, the answer could have ended for the second before it is looked at.
    await Promise.all([one, two].map((page) => page.waitForSelector('.answer[data-state=streaming] .text p', WAIT)));
    const earlier = await answerText(two);
    const three = await open(room);
    await three.waitForSelector('.answer .text p', WAIT);
    expect((await answerText(three)).startsWith(earlier)).toBe(true);
    for (const page of [one, two, three]) await page.waitForSelector('.answer[data-state=completed]', WAIT);
    const final = await answerText(one);
    expect(final.length).toBeGreaterThan(earlier.length);
    expect(await answerText(two)).toBe(final);
    expect(await answerText(three)).toBe(final);
    expect(await three.locator('.answer .label').innerText()).toBe('n-gram demo model');
    expect(await three.locator('.answer .figures').innerText()).toMatch(/^\d+ tokens · /);
  });

  test('[RUN3] Stop in one tab stops the answer for all and keeps what was said', async () => {
    const room = freshRoom();
    const one = await open(room);
    const two = await open(room);
    await say(one, 'What happens when a worker is lost?', true);
    await two.waitForSelector('.answer[data-state=streaming] .text p', WAIT);
    // Without the looks that precede a click: on a busy machine they take longer than the answer.
    await two.dispatchEvent('.stop', 'click', {}, WAIT);
    for (const page of [one, two]) await page.waitForSelector('.answer[data-state=cancelled]', WAIT);
    expect((await answerText(one)).length).toBeGreaterThan(0);
    await expect.poll(() => answerText(two), WAIT).toBe(await answerText(one));
  });

  test('older messages come when one scrolls up, without a gap', async () => {
    const room = freshRoom();
    const writer = await open(room);
    for (let i = 1; i <= 60; i++) await say(writer, `line ${i}.`);
    await shows(writer, 'line 60.');
    const reader = await open(room);
    await shows(reader, 'line 60.');
    expect((await seqs(reader))[0]).toBe(11);
    await reader.hover('.timeline');
    await reader.mouse.wheel(0, -100_000);
    await shows(reader, 'line 1.');
    expect(await seqs(reader)).toEqual(Array.from({ length: 60 }, (_, i) => i + 1));
  });

  test('a token brought in the address names the user, leaves the address, and survives a reload', async () => {
    const room = freshRoom();
    const page = await (await browser.newContext()).newPage();
    const token = await devToken({ user: 'clara', cap: { [room]: ['join', 'publish'] } });
    await page.goto(`${gateway.url}/#room=${room}&token=${token}`);
    await connected(page);
    expect(page.url()).toBe(`${gateway.url}/#room=${room}`);
    await say(page, 'it is me');
    await shows(page, 'it is me');
    await page.reload();
    await connected(page);
    await shows(page, 'it is me');
    expect(await page.locator('.message.own .meta strong').innerText()).toBe('clara');
    expect(await page.locator('.who-name').innerText()).toBe('clara');
  });

  test('without a demo tenant the page says how to bring a token; one that is no good is not kept', async () => {
    const page = await (await browser.newContext()).newPage();
    await page.route('**/demo/token', (route) => route.fulfill({ status: 404, body: '' }));
    await page.goto(gateway.url);
    await page.locator('.banner', { hasText: '#room=lobby&token=<token>' }).waitFor(WAIT);
    await page.goto(`${gateway.url}/#token=nonsense`); // the address alone changes, which loads the page anew
    await page.locator('.banner', { hasText: 'Your token is not accepted' }).waitFor(WAIT);
    await page.reload();
    await page.locator('.banner', { hasText: '#room=lobby&token=<token>' }).waitFor(WAIT);
  });

  test('at phone width nothing scrolls sideways, and the panel opens and closes', async () => {
    const page = await open(freshRoom(), {
      viewport: { width: 390, height: 844 },
      hasTouch: true,
      colorScheme: 'dark',
    });
    await page.fill(
      '#said',
      `a${'b'.repeat(300)} https://example.com/${'c'.repeat(200)}\n\`\`\`\n${'d'.repeat(300)}\n\`\`\``,
    );
    await page.click('button[type=submit]');
    await page.locator('.message:not(.pending)').first().waitFor(WAIT);
    const widths = () =>
      page.evaluate<number[]>(
        '[document.documentElement.scrollWidth, document.querySelector(".timeline").scrollWidth]',
      );
    for (const width of await widths()) expect(width).toBeLessThanOrEqual(390);
    await page.click('[aria-controls=inspector]');
    expect(await page.locator('[data-testid=position]').innerText()).toBe('1');
    for (const width of await widths()) expect(width).toBeLessThanOrEqual(390);
    await page.click('.inspector-head button');
    expect(await page.locator('.inspector').count()).toBe(0);
  });
});
