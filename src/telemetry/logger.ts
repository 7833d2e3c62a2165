import { createRequire } from 'node:module';
import { type LoggerOptions, pino, stdTimeFunctions } from 'pino';
import type { Logger } from '../core/telemetry.js';

/** Fields that never reach a log line, at the top level and one level down. */
const SECRET_FIELDS = ['authorization', 'token', 'key', 'secret', 'password'];

const prettyTransport = (): LoggerOptions['transport'] => {
  try {
    createRequire(import.meta.url).resolve('pino-pretty');
  } catch {
    return undefined;
  }
  return { target: 'pino-pretty', options: { ignore: 'pid,hostname,node', translateTime: 'SYS:HH:MM:ss.l' } };
};

/**
 * JSON lines on stdout, written before the call returns. `pretty` asks for readable lines instead; it is honoured only on
 * a terminal and where pino-pretty is installed.
 */
export function createLogger(options: { level: string; nodeId: string; pretty?: boolean }): Logger {
  const transport = options.pretty && process.stdout.isTTY ? prettyTransport() : undefined;
  return pino({
    level: options.level,
    base: { node: options.nodeId },
    timestamp: stdTimeFunctions.isoTime,
    redact: { paths: SECRET_FIELDS.flatMap((field) => [field, `*.${field}`]), censor: '(hidden)' },
    ...(transport ? { transport } : {}),
  });
}
