import type { counters, gauges, Logger, Metrics } from '../../src/core/telemetry.js';

/** Metrics that a test can read. */
export interface RecordedMetrics extends Metrics {
  /** Sum of a counter over all its series whose labels contain `labels`. */
  total(name: keyof typeof counters, labels?: Record<string, string>): number;
  /** What a gauge reads now, or `undefined` if nobody registered it. */
  read(name: keyof typeof gauges): number | undefined;
}

export function recordMetrics(): RecordedMetrics {
  const added: { name: string; labels: Record<string, string>; by: number }[] = [];
  const readers = new Map<string, () => number>();
  return {
    add(name, labels, by = 1) {
      const known = added.find((one) => one.name === name && JSON.stringify(one.labels) === JSON.stringify(labels));
      if (known) known.by += by;
      else added.push({ name, labels: { ...labels }, by });
    },
    observe: () => undefined,
    gauge: (name, read) => void readers.set(name, read),
    total: (name, labels = {}) =>
      added
        .filter((one) => one.name === name && Object.entries(labels).every(([key, value]) => one.labels[key] === value))
        .reduce((sum, { by }) => sum + by, 0),
    read: (name) => readers.get(name)?.(),
  };
}

/** A logger that keeps its lines instead of writing them. */
export function recordLog(): Logger & { lines: { level: string; message: string; fields: object }[] } {
  const lines: { level: string; message: string; fields: object }[] = [];
  const at = (level: string) => (fields: object, message: string) => void lines.push({ level, message, fields });
  return { lines, debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') };
}
