import { type Outcome, type Part, type RunContext, RunFailure } from '../worker/index.js';
import type { Message } from './conversation.js';

/** An OpenAI-compatible server, such as vLLM, Ollama or llama.cpp. */
export interface OpenAiServer {
  /** With its version, for example `http://127.0.0.1:11434/v1`. */
  baseUrl: string;
  apiKey: string | undefined;
  /** Unset: the first model the server lists. */
  model: string | undefined;
}

interface Chunk {
  model?: string;
  choices?: {
    delta?: { content?: string | null; reasoning?: string | null; reasoning_content?: string | null };
    finish_reason?: string | null;
  }[];
  usage?: { prompt_tokens?: number; completion_tokens?: number; total_tokens?: number } | null;
  error?: { message?: string } | string;
}

/**
 * Streams one chat completion as parts. Ids are positional (`text-0`, `reasoning-0`), so that a repeated attempt is
 * told apart by its number only.
 * @throws RunFailure saying what the server answered, or that it cannot be reached (retryable).
 */
export async function* streamCompletion(
  server: OpenAiServer,
  messages: Message[],
  signal: RunContext['signal'],
): AsyncGenerator<Part, Outcome> {
  const model = server.model ?? (await firstModel(server, signal));
  const response = await call(server, 'chat/completions', signal, {
    model,
    messages,
    stream: true,
    stream_options: { include_usage: true },
  });
  yield { type: 'start', messageMetadata: { model, label: model } };
  const blocks = new Blocks();
  let usage: Outcome['usage'];
  let reason: string | undefined;
  for await (const data of serverSentData(response, server, signal)) {
    if (data === '[DONE]') break;
    const chunk = parseChunk(data);
    if (chunk.error) throw new RunFailure('model_error', `The model server said: ${messageOf(chunk.error)}`);
    if (chunk.usage) usage = usageOf(chunk.usage);
    const choice = chunk.choices?.[0];
    reason = choice?.finish_reason ?? reason;
    const reasoning = choice?.delta?.reasoning_content ?? choice?.delta?.reasoning;
    if (reasoning) yield* blocks.delta('reasoning', reasoning);
    if (choice?.delta?.content) yield* blocks.delta('text', choice.delta.content);
  }
  yield* blocks.close();
  yield {
    type: 'finish',
    messageMetadata: { ...(usage ? { usage } : {}), ...(reason ? { finishReason: reason } : {}) },
  };
  return { ...(usage ? { usage } : {}), meta: { model, label: model } };
}

/** Opens and closes blocks of text and reasoning as deltas of one or the other come. */
class Blocks {
  #open: { kind: 'text' | 'reasoning'; id: string } | undefined;
  #count = { text: 0, reasoning: 0 };

  *delta(kind: 'text' | 'reasoning', delta: string): Generator<Part> {
    if (this.#open?.kind !== kind) {
      yield* this.close();
      this.#open = { kind, id: `${kind}-${this.#count[kind]++}` };
      yield { type: `${kind}-start`, id: this.#open.id };
    }
    yield { type: `${kind}-delta`, id: this.#open.id, delta };
  }

  *close(): Generator<Part> {
    if (this.#open) yield { type: `${this.#open.kind}-end`, id: this.#open.id };
    this.#open = undefined;
  }
}

async function firstModel(server: OpenAiServer, signal: AbortSignal): Promise<string> {
  const response = await call(server, 'models', signal);
  const list = (await response.json()) as { data?: { id?: string }[] };
  const id = list.data?.[0]?.id;
  if (!id) throw new RunFailure('no_model', 'The model server lists no model; set OPENAI_MODEL.');
  return id;
}

async function call(server: OpenAiServer, path: string, signal: AbortSignal, body?: unknown): Promise<Response> {
  const url = `${server.baseUrl.replace(/\/+$/, '')}/${path}`;
  const headers: Record<string, string> = { accept: body ? 'text/event-stream' : 'application/json' };
  if (body) headers['content-type'] = 'application/json';
  if (server.apiKey) headers.authorization = `Bearer ${server.apiKey}`;
  let response: Response;
  try {
    response = await fetch(
      url,
      body ? { method: 'POST', headers, body: JSON.stringify(body), signal } : { headers, signal },
    );
  } catch (cause) {
    throw new RunFailure('model_unreachable', `No model server answers at OPENAI_BASE_URL (${hostOf(url)}).`, true, {
      cause,
    });
  }
  if (response.ok) return response;
  const text = (await response.text().catch(() => '')).slice(0, 2000);
  const hint = hints[response.status] ?? '';
  const said = parseError(text);
  const retryable = response.status === 429 || response.status >= 500;
  throw new RunFailure(
    'model_error',
    `The model server answered ${response.status}${said ? `: ${said}` : ''}.${hint}`,
    retryable,
  );
}

const hints: Record<number, string> = {
  401: ' Is OPENAI_API_KEY right?',
  403: ' Is OPENAI_API_KEY right?',
  404: ' Is OPENAI_BASE_URL right (it ends in /v1 on most servers), and is OPENAI_MODEL there?',
};

const hostOf = (url: string): string => new URL(url).host;

/** The `data` fields of a stream of server-sent events. Source: https://html.spec.whatwg.org/multipage/server-sent-events.html */
async function* serverSentData(response: Response, server: OpenAiServer, signal: AbortSignal): AsyncGenerator<string> {
  if (!response.body) return;
  const decoder = new TextDecoder();
  let rest = '';
  let data: string[] = [];
  try {
    for await (const bytes of response.body) {
      const lines = (rest + decoder.decode(bytes as Uint8Array, { stream: true })).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop() ?? '';
      for (const line of lines) {
        if (line.startsWith('data:')) data.push(line.slice(5).replace(/^ /, ''));
        else if (line === '' && data.length > 0) {
          yield data.join('\n');
          data = [];
        }
      }
    }
  } catch (cause) {
    if (signal.aborted) throw cause;
    throw new RunFailure(
      'model_unreachable',
      `The model server (${hostOf(server.baseUrl)}) broke off in the middle.`,
      true,
      { cause },
    );
  }
  if (rest.startsWith('data:')) data.push(rest.slice(5).replace(/^ /, ''));
  if (data.length > 0) yield data.join('\n');
}

function parseChunk(data: string): Chunk {
  try {
    return JSON.parse(data) as Chunk;
  } catch (cause) {
    throw new RunFailure('model_error', 'The model server sent something that is not JSON.', false, { cause });
  }
}

function parseError(text: string): string {
  try {
    const { error, message } = JSON.parse(text) as { error?: Chunk['error']; message?: string };
    return error ? messageOf(error) : (message ?? '');
  } catch {
    return text.trim().slice(0, 200);
  }
}

const messageOf = (error: NonNullable<Chunk['error']>): string =>
  (typeof error === 'string' ? error : (error.message ?? 'no reason given')).slice(0, 500);

const usageOf = (usage: NonNullable<Chunk['usage']>): NonNullable<Outcome['usage']> => ({
  ...(usage.prompt_tokens === undefined ? {} : { inputTokens: usage.prompt_tokens }),
  ...(usage.completion_tokens === undefined ? {} : { outputTokens: usage.completion_tokens }),
  ...(usage.total_tokens === undefined ? {} : { totalTokens: usage.total_tokens }),
});
