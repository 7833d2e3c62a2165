import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { streamCompletion } from '../../src/demo/openai.js';
import { foldParts } from '../../src/protocol/fold.js';
import { type Part, part } from '../../src/protocol/parts.js';
import type { Outcome } from '../../src/worker/index.js';

type Serve = (request: IncomingMessage & { json?: Record<string, unknown> }, response: ServerResponse) => void;

let close: (() => Promise<void>) | undefined;
afterEach(() => close?.());

/** A real HTTP server on a port of its own. */
async function serverWith(serve: Serve): Promise<string> {
  const server = createServer((request, response) => {
    const body: Buffer[] = [];
    request.on('data', (bytes: Buffer) => body.push(bytes));
    request.on('end', () => {
      const text = Buffer.concat(body).toString();
      serve(Object.assign(request, text ? { json: JSON.parse(text) as Record<string, unknown> } : {}), response);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  close = async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  };
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`;
}

const event = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`;
const delta = (fields: object, finish: string | null = null) =>
  event({ choices: [{ index: 0, delta: fields, finish_reason: finish }] });
const ask = (
  baseUrl: string,
  signal = new AbortController().signal,
  model: string | undefined = 'm',
  apiKey?: string,
) => streamCompletion({ baseUrl, apiKey, model }, [{ role: 'user', content: 'Hi' }], signal);

async function collect(stream: AsyncGenerator<Part, Outcome>): Promise<{ parts: Part[]; outcome: Outcome }> {
  const parts: Part[] = [];
  for (;;) {
    const step = await stream.next();
    if (step.done) return { parts, outcome: step.value };
    parts.push(step.value);
  }
}

describe('OpenAI-compatible server', () => {
  test('its deltas become parts of the protocol with positional ids, its usage the outcome', async () => {
    let asked: Record<string, unknown> | undefined;
    let authorization: string | undefined;
    const url = await serverWith((request, response) => {
      asked = request.json;
      authorization = request.headers.authorization;
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      const stream =
        `: a comment\r\n\r\n` +
        delta({ role: 'assistant', content: '' }) +
        delta({ reasoning_content: 'Let me ' }) +
        delta({ reasoning_content: 'see.' }) +
        delta({ content: 'Grüß ' }) +
        delta({ content: 'dich' }) +
        delta({}, 'stop') +
        event({ choices: [], usage: { prompt_tokens: 3, completion_tokens: 5, total_tokens: 8 } }) +
        'data: [DONE]\n\n';
      // Byte by byte around the umlaut: neither lines nor letters keep to the edges of packets.
      const bytes = Buffer.from(stream);
      for (let i = 0; i < bytes.length; i += 7) response.write(bytes.subarray(i, i + 7));
      response.end();
    });
    const { parts, outcome } = await collect(ask(url, undefined, 'm', 'sk-test'));
    for (const one of parts) expect(part.safeParse(one).success, JSON.stringify(one)).toBe(true);
    expect(foldParts(parts)).toEqual([
      { type: 'start', messageMetadata: { model: 'm', label: 'm' } },
      { type: 'reasoning-start', id: 'reasoning-0' },
      { type: 'reasoning-delta', id: 'reasoning-0', delta: 'Let me see.' },
      { type: 'reasoning-end', id: 'reasoning-0' },
      { type: 'text-start', id: 'text-0' },
      { type: 'text-delta', id: 'text-0', delta: 'Grüß dich' },
      { type: 'text-end', id: 'text-0' },
      {
        type: 'finish',
        messageMetadata: { usage: { inputTokens: 3, outputTokens: 5, totalTokens: 8 }, finishReason: 'stop' },
      },
    ]);
    expect(outcome.usage).toEqual({ inputTokens: 3, outputTokens: 5, totalTokens: 8 });
    expect(asked).toMatchObject({ model: 'm', stream: true, stream_options: { include_usage: true } });
    expect(authorization).toBe('Bearer sk-test');
  });

  test('without a model the first one it lists is asked', async () => {
    let asked: unknown;
    const url = await serverWith((request, response) => {
      if (request.url === '/v1/models') {
        response.end(JSON.stringify({ data: [{ id: 'tiny' }] }));
        return;
      }
      asked = request.json?.model;
      response.end(`${delta({ content: 'ok' })}data: [DONE]\n\n`);
    });
    const stream = streamCompletion(
      { baseUrl: url, apiKey: undefined, model: undefined },
      [{ role: 'user', content: 'Hi' }],
      new AbortController().signal,
    );
    await collect(stream);
    expect(asked).toBe('tiny');
  });

  test('a refusal says what the server said and what may help; only some are worth another attempt', async () => {
    const url = await serverWith((request, response) => {
      const status = request.json?.model === 'busy' ? 429 : 401;
      response.writeHead(status, { 'content-type': 'application/json' });
      response.end(JSON.stringify({ error: { message: 'no such key' } }));
    });
    await expect(collect(ask(url))).rejects.toMatchObject({
      code: 'model_error',
      message: 'The model server answered 401: no such key. Is OPENAI_API_KEY right?',
      retryable: false,
    });
    await expect(collect(ask(url, undefined, 'busy'))).rejects.toMatchObject({ retryable: true });
  });

  test('an unreachable server and one that breaks off fail as retryable', async () => {
    const url = await serverWith((_, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write(delta({ content: 'half' }), () => response.destroy());
    });
    await expect(collect(ask(url))).rejects.toMatchObject({ code: 'model_unreachable', retryable: true });
    await close?.();
    close = undefined;
    await expect(collect(ask(url))).rejects.toMatchObject({ code: 'model_unreachable', retryable: true });
  });

  test('[RUN3] an abort ends the request to the model', async () => {
    let ended: () => void = () => undefined;
    const gone = new Promise<void>((resolve) => {
      ended = resolve;
    });
    const url = await serverWith((_, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write(delta({ content: 'for ever' }));
      response.on('close', ended);
    });
    const abort = new AbortController();
    const stream = ask(url, abort.signal);
    let step = await stream.next();
    while (!step.done && step.value.type !== 'text-delta') step = await stream.next();
    abort.abort();
    await expect(stream.next()).rejects.toMatchObject({ name: 'AbortError' });
    await gone;
  });
});
