import { check } from 'k6';
import http from 'k6/http';
import { Counter, Rate, Trend } from 'k6/metrics';
import { WebSocket } from 'k6/websockets';

/*
 * What the load tests share: settings from the environment, tokens, and the Socket.IO wire (Engine.IO 4 in a
 * WebSocket, Socket.IO protocol 5) over k6's WebSocket.
 */

export const baseUrl = __ENV.BASE_URL || 'http://127.0.0.1:3000';
const serverKey = __ENV.SERVER_KEY;
export const connections = Number(__ENV.CONNECTIONS || 200);
export const rooms = Number(__ENV.ROOMS || 10);
/** Per second, over all rooms. */
export const rate = Number(__ENV.RATE || 50);
export const seconds = Number((__ENV.DURATION || '30s').replace(/s$/, ''));
/** Sockets one VU holds: a VU is a JavaScript runtime of several MB, a socket is not. */
export const perVu = Number(__ENV.PER_VU || 50);
export const vus = Math.ceil(connections / perVu);

export const connectDuration = new Trend('tutti_connect_duration', true);
export const connected = new Rate('tutti_connected');
export const answered = new Rate('tutti_commands_ok');
export const ackDuration = new Trend('tutti_ack_duration', true);
export const deliveryDuration = new Trend('tutti_delivery_duration', true);
export const deliveries = new Counter('tutti_deliveries');
/** Events that came twice, out of order or not at all. */
export const gaps = new Counter('tutti_gaps');
/** Connections the server ended, or the network. */
export const lost = new Counter('tutti_connections_lost');

/** A promise of a correct gateway: these hold whatever the load. Times do not; give them with --threshold if you have them. */
export const promises = {
  tutti_connected: ['rate==1'],
  tutti_gaps: ['count==0'],
  checks: ['rate==1'],
};

/** One scenario in which every VU runs `exec` once, for as long as it takes to ramp up and run. */
export const once = (exec, count) => ({
  executor: 'per-vu-iterations',
  exec,
  vus: count,
  iterations: 1,
  maxDuration: `${seconds + 90}s`,
  gracefulStop: '5s',
});

/** Mints tokens for `count` users; VUs take one by number. Called in `setup`. */
export function mint(count, cap) {
  const tokens = [];
  for (let i = 0; i < count; i++) {
    const body = JSON.stringify({ user: `load-${i}`, cap: { 'load-*': cap }, ttlSeconds: seconds + 300 });
    const answer = http.post(`${baseUrl}/v1/tokens`, body, {
      headers: { Authorization: `Bearer ${serverKey}`, 'Content-Type': 'application/json' },
    });
    if (!check(answer, { 'a token is minted': ({ status }) => status === 201 })) {
      throw new Error(`POST /v1/tokens answered ${answer.status} ${answer.body}`);
    }
    tokens.push(answer.json('token'));
  }
  return tokens;
}

/** Where this run's rooms are. Made in `setup`, so that all VUs have the same. */
export const runName = () => `load-${Date.now().toString(36)}`;

/** The numbers of the sockets this VU holds, by its number in its scenario. */
export function share(vuInScenario) {
  const from = vuInScenario * perVu;
  return Array.from({ length: Math.max(0, Math.min(perVu, connections - from)) }, (_, i) => from + i);
}

/**
 * A session. `onPush(name, payload)` gets every push; `onEnd(expected)` is called once when the connection is
 * gone. `ready` settles with whether the server took the token.
 */
export class Session {
  constructor(token, { onPush = () => {}, onEnd = () => {}, namespace = '' } = {}) {
    this.acks = new Map();
    this.lastAck = 0;
    this.ended = false;
    this.prefix = namespace === '' ? '' : `${namespace},`;
    const began = Date.now();
    this.socket = new WebSocket(`${baseUrl.replace(/^http/, 'ws')}/socket.io/?EIO=4&transport=websocket`);
    this.ready = new Promise((resolve) => {
      this.settle = (ok) => {
        this.settle = () => {};
        connected.add(ok);
        if (ok) connectDuration.add(Date.now() - began);
        resolve(ok);
      };
    });
    this.socket.addEventListener('message', ({ data }) => this.read(data, token, onPush));
    this.socket.addEventListener('error', () => {});
    this.socket.addEventListener('close', () => {
      this.settle(false);
      for (const fail of this.acks.values()) fail(undefined);
      this.acks.clear();
      if (!this.ended) lost.add(1);
      onEnd(this.ended);
    });
  }

  read(data, token, onPush) {
    const type = data.slice(0, 2);
    if (data === '2') this.socket.send('3');
    else if (type[0] === '0') this.socket.send(`40${this.prefix}${JSON.stringify(token)}`);
    else if (type === '40') this.settle(true);
    else if (type === '44') {
      console.error(`refused: ${data}`);
      this.settle(false);
    } else if (type === '42') onPush(...JSON.parse(data.slice(data.indexOf('['))));
    else if (type === '43') {
      const at = data.indexOf('[');
      const id = Number(/(\d+)$/.exec(data.slice(2, at))[1]);
      const resolve = this.acks.get(id);
      this.acks.delete(id);
      if (resolve) resolve(JSON.parse(data.slice(at))[0]);
    }
  }

  /** Resolves with the ack, or `undefined` when the connection ended before it. */
  call(command, payload) {
    const id = this.lastAck++;
    const began = Date.now();
    return new Promise((resolve) => {
      this.acks.set(id, (ack) => {
        const ok = ack?.ok;
        answered.add(ok);
        if (ok) ackDuration.add(Date.now() - began, { command });
        else if (ack) console.error(`${command}: ${JSON.stringify(ack.error)}`);
        resolve(ack);
      });
      this.socket.send(`42${this.prefix}${id}${JSON.stringify([command, payload])}`);
    });
  }

  /** Leaves as we please; not counted as lost. */
  end() {
    this.ended = true;
    this.socket.close();
  }
}

export const session = (token, handlers) => new Session({ token }, handlers);
export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Holds one reader to FEED1: seqs are consecutive from its position. */
export class Reader {
  constructor(position) {
    this.position = position;
  }

  take(event) {
    deliveries.add(1);
    if (event.epoch !== this.position.epoch || event.seq !== this.position.seq + 1) {
      gaps.add(1);
      console.error(`after ${JSON.stringify(this.position)} came ${event.epoch}:${event.seq}`);
    }
    this.position = { epoch: event.epoch, seq: event.seq };
  }
}
