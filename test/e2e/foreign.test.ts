import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { DefaultChatTransport, readUIMessageStream, type UIMessage, type UIMessageChunk } from 'ai';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { foldParts } from '../../src/protocol/fold.js';
import type { Part } from '../../src/protocol/parts.js';
import type { Assignment } from '../../src/protocol/worker.js';
import { eventually } from '../support/eventually.js';
import type { GatewayProcess } from '../support/gateway.js';
import { own } from '../support/owned.js';
import { scoreOf } from './run-score.js';
import { startPair, storedRun, Undo, userToken } from './run-stage.js';
import { RunStream, RunViewer } from './run-viewers.js';
import { BareWorker, play } from './run-workers.js';

const shared = new Undo();
const undo = new Undo();
let a: GatewayProcess;
let b: GatewayProcess;
let token: string;
beforeAll(async () => {
  ({ a, b } = await startPair(shared));
  token = await userToken('ann');
});
afterEach(() => undo.all());
afterAll(() => shared.all());

const view = async (room: string) => undo.add(await RunViewer.join(a.url, { room, token }), (viewer) => viewer.close());

/** A run that a worker on the other gateway holds. */
async function begin(room: string) {
  const viewer = await view(room);
  const worker = undo.add(await BareWorker.connect(b.url), (one) => one.close());
  const { run } = await viewer.client.call('run.create', { room, model: 'score', input: {} });
  const assignment = await worker.assignment(run.id);
  return { viewer, worker, assignment, run: run.id };
}

describe('the AI SDK', () => {
  /** The transport of `useChat`, with nothing of ours but the address and the token. */
  const transport = (url: string) =>
    new DefaultChatTransport<UIMessage>({
      api: `${url}/v1/runs`,
      headers: { authorization: `Bearer ${token}` },
    });
  const open = async (url: string, run: string, headers: Record<string, string> = {}) => {
    const stream = await transport(url).reconnectToStream({ chatId: run, headers });
    if (!stream) throw new Error('no stream');
    return stream;
  };
  async function chunksOf(stream: ReadableStream<UIMessageChunk>): Promise<UIMessageChunk[]> {
    const chunks: UIMessageChunk[] = [];
    for await (const chunk of stream) chunks.push(chunk);
    return chunks;
  }
  async function messageOf(stream: ReadableStream<UIMessageChunk>): Promise<UIMessage | undefined> {
    let last: UIMessage | undefined;
    for await (const message of readUIMessageStream({ stream })) last = message;
    return last;
  }
  const deltas = (parts: readonly { type: string }[], type: string) =>
    parts.map((part) => (part.type === type && 'delta' in part ? part.delta : '')).join('');

  test('[RUN1][RUN4] its transport and its reader make the message of the run, live and again after the end', async () => {
    const { viewer, worker, assignment, run } = await begin('sdk');
    const parts: Part[] = [
      ...scoreOf('sdk', 30).slice(0, -1),
      { type: 'tool-input-start', toolCallId: 'call-1', toolName: 'metronome' },
      { type: 'tool-input-delta', toolCallId: 'call-1', inputTextDelta: '{"bpm":' },
      { type: 'tool-input-delta', toolCallId: 'call-1', inputTextDelta: '60}' },
      { type: 'tool-input-available', toolCallId: 'call-1', toolName: 'metronome', input: { bpm: 60 } },
      { type: 'tool-output-available', toolCallId: 'call-1', output: { ok: true } },
      { type: 'source-url', sourceId: 's1', url: 'https://example.org/', title: 'A source' },
      { type: 'data-tempo', id: 'd1', data: { bpm: 60 } },
      { type: 'finish' },
    ];
    const live = messageOf(await open(a.url, run));
    await play(worker, assignment, parts, { pauseMs: 2 });
    await worker.finish(assignment, parts.length);
    await viewer.ended(run);
    for (const message of [await live, await messageOf(await open(b.url, run))]) {
      expect(message).toMatchObject({
        role: 'assistant',
        metadata: { label: 'sdk' },
        parts: [
          { type: 'reasoning', state: 'done' },
          { type: 'text', text: deltas(parts, 'text-delta'), state: 'done' },
          { type: 'tool-metronome', state: 'output-available', input: { bpm: 60 }, output: { ok: true } },
          { type: 'source-url', url: 'https://example.org/' },
          { type: 'data-tempo', data: { bpm: 60 } },
        ],
      });
    }
    expect((await storedRun(a.url, token, run)).output).toEqual(foldParts(parts));
  });

  test('[RUN1] it resumes in mid-stream by Last-Event-ID, on another gateway', async () => {
    const { viewer, worker, assignment, run } = await begin('resume');
    const parts = scoreOf('resume', 50);
    const first = undo.add(await RunStream.open(a.url, token, run), (one) => one.close());
    expect(Object.fromEntries(first.response.headers)).toMatchObject({
      'content-type': expect.stringMatching(/^text\/event-stream/),
      'x-vercel-ai-ui-message-stream': 'v1',
      'cache-control': 'no-cache',
    });
    await play(worker, assignment, parts, { to: 25, pauseMs: 1 });
    await first.reaches(20);
    first.close();
    await first.closed;
    expect(first.done).toBe(false);
    const rest = chunksOf(await open(b.url, run, { 'last-event-id': first.lastEventId ?? '' }));
    await play(worker, assignment, parts, { from: 25, pauseMs: 1 });
    await worker.finish(assignment, 50);
    await viewer.ended(run);
    expect(first.faults).toEqual([]);
    expect([...first.parts, ...(await rest)]).toEqual(parts);
  });

  test('[RUN2][RUN3] it is told of another attempt, of a failure and of a cancel', async () => {
    const { viewer, worker, assignment, run } = await begin('ends');
    const stream = chunksOf(await open(a.url, run));
    await play(worker, assignment, scoreOf('one', 12), { to: 8, pauseMs: 1 });
    await viewer.reaches(run, 8);
    const error = { code: 'busy', message: 'The model is busy.' };
    const { run: id, fence } = assignment;
    await worker.ask('run.fail', { run: id.id, fence, error, retryable: true });
    const second = await worker.client.until<Assignment>(
      () => worker.assigned.find((one) => one.run.id === run && one.attempt === 2),
      'the second attempt',
    );
    await play(worker, second, scoreOf('two', 12), { to: 9, pauseMs: 1 });
    await viewer.reaches(run, 9);
    await worker.ask('run.fail', { run, fence: second.fence, error, retryable: false });
    await viewer.ended(run);
    const chunks = await stream;
    const at = chunks.findIndex(({ type }) => type === 'data-tutti-reset');
    expect(chunks[at]).toEqual({ type: 'data-tutti-reset', data: { attempt: 2 }, transient: true });
    expect(chunks.slice(at + 1)).toEqual([
      ...scoreOf('two', 12).slice(0, 9),
      { type: 'error', errorText: 'The model is busy.' },
    ]);

    const { run: next } = await viewer.client.call('run.create', { room: 'ends', model: 'score', input: {} });
    const held = await worker.assignment(next.id);
    const other = chunksOf(await open(b.url, next.id));
    await play(worker, held, scoreOf('three', 12), { to: 6, pauseMs: 1 });
    await viewer.reaches(next.id, 6);
    await viewer.client.call('run.cancel', { run: next.id });
    expect((await other).at(-1)).toEqual({ type: 'abort' });
    expect(viewer.faults).toEqual([]);
  });
});

/** An interpreter that has python-socketio and aiohttp; PYTHON names another one than `python3`. */
const python = process.env.PYTHON || 'python3';
const hasPythonSocketIo = spawnSync(python, ['-c', 'import socketio, aiohttp']).status === 0;

test.skipIf(!hasPythonSocketIo)(
  '[FEED1][RUN1] a python-socketio client joins, publishes and follows a run (needs python-socketio and aiohttp)',
  async () => {
    const worker = undo.add(await BareWorker.connect(b.url), (one) => one.close());
    const { PATH = '', HOME = '' } = process.env;
    const script = join(import.meta.dirname, 'run-foreign.py');
    const client = own(python, [script, a.url, token, 'python'], {
      env: { PATH, HOME, PYTHONIOENCODING: 'utf-8' },
    });
    undo.add(client, (one) => one.end('SIGKILL'));
    const parts = scoreOf('python', 30);
    const assignment = await worker.assignment();
    await play(worker, assignment, parts, { pauseMs: 2 });
    await worker.finish(assignment, 30);
    await eventually('python is done', () => !client.running());
    expect(await client.exited, client.output()).toBe(0);

    const said = client
      .output()
      .split('\n')
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line) as { name: string; data: never });
    const of = (name: string) => said.filter((one) => one.name === name).map(({ data }) => data as never);
    expect(of('joined')).toMatchObject([{ ok: true, resumed: false }]);
    expect(of('published')).toMatchObject([{ ok: true, duplicate: false, mid: 'py-1', position: { seq: 1 } }]);
    expect(of('again')).toMatchObject([{ ok: true, duplicate: true, position: { seq: 1 } }]);
    expect(of('refused')).toMatchObject([{ ok: false, error: { code: 'bad_request' } }]);
    const events = of('event') as { seq: number; type: string; data: unknown }[];
    expect(events.map(({ seq, type }) => [seq, type])).toEqual([
      [1, 'chat'],
      [2, 'run.created'],
      [3, 'run.completed'],
    ]);
    expect(events[0]?.data).toEqual({ text: 'grüße 🎻' });
    const chunks = of('run.chunk') as { n: number; parts: Part[] }[];
    expect(chunks.flatMap((chunk) => chunk.parts)).toEqual(parts);
    expect(events[2]?.data).toMatchObject({ message: { role: 'assistant', parts: foldParts(parts) } });
  },
);
