import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import { counters, gauges, histograms, type Metrics } from '../core/telemetry.js';

/** Upper bounds in s, from half a millisecond to ten minutes: commits stand at the left end, runs at the right. */
const BUCKETS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600];

/** Clients name the models of their runs: past so many names the rest are counted together, so that none fills the memory. */
const MODELS_MAX = 100;
const OTHER_MODELS = 'other';

/** What {@link createMetrics} makes: the core's port, and the registry that `/metrics` prints. */
export interface PrometheusMetrics extends Metrics {
  readonly registry: Registry;
}

const entries = <T extends object>(table: T) => Object.entries(table) as [keyof T & string, T[keyof T]][];

/**
 * Every metric of the core's tables in a registry of its own, with the process's default metrics (memory, CPU, event
 * loop lag). A label set appears at its first use; a counter without labels starts at 0.
 */
export function createMetrics(): PrometheusMetrics {
  const registry = new Registry();
  const registers = [registry];
  collectDefaultMetrics({ register: registry });

  const counterOf = new Map<string, Counter>();
  for (const [name, { help, labels }] of entries(counters)) {
    counterOf.set(name, new Counter({ name: `tutti_${name}_total`, help, labelNames: [...labels], registers }));
  }
  const histogramOf = new Map<string, Histogram>();
  for (const [name, { help, labels }] of entries(histograms)) {
    const labelNames = [...labels];
    histogramOf.set(
      name,
      new Histogram({ name: `tutti_${name}_seconds`, help, labelNames, buckets: BUCKETS, registers }),
    );
  }
  const reads = new Map<string, () => number>();
  for (const [name, { help }] of entries(gauges)) {
    new Gauge({
      name: `tutti_${name}`,
      help,
      registers,
      collect() {
        const read = reads.get(name);
        if (read) this.set(read());
      },
    });
  }

  const models = new Set<string>();
  const bounded = <L extends object>(labels: L): L => {
    if (!('model' in labels) || typeof labels.model !== 'string' || models.has(labels.model)) return labels;
    if (models.size >= MODELS_MAX) return { ...labels, model: OTHER_MODELS };
    models.add(labels.model);
    return labels;
  };

  return {
    registry,
    add(name, labels, by = 1) {
      counterOf.get(name)?.inc(bounded(labels), by);
    },
    observe(name, seconds, labels) {
      histogramOf.get(name)?.observe(bounded(labels), seconds);
    },
    gauge(name, read) {
      reads.set(name, read);
    },
  };
}
