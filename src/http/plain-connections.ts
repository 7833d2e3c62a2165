import type uWS from 'uWebSockets.js';
import { countLimit, type Metrics } from '../core/telemetry.js';

/**
 * TCP connections that are no WebSocket: with a request, after one or before. Past the limit a new one is closed unread, so that
 * files are left for Postgres, Redis and those who are there.
 */
export class PlainConnections {
  #open = 0;

  constructor(app: uWS.TemplatedApp, max: number, metrics: Metrics) {
    metrics.gauge('http_connections', () => this.#open);
    app.filter((res, by) => this.#count(res, Number(by), max, metrics));
  }

  #count(res: uWS.HttpResponse, by: number, max: number, metrics: Metrics): void {
    this.#open += by;
    if (by < 0 || this.#open <= max) return;
    countLimit(metrics, 'http_connections');
    res.close();
  }

  /** One of them has become a WebSocket, which the filter is not told. */
  upgraded(): void {
    this.#open -= 1;
  }
}
