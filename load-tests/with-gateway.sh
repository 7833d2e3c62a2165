#!/usr/bin/env bash
# Runs a command against a gateway of its own: starts dist/main.js on a free port of 127.0.0.1 with development keys
# made for this run, waits until it is ready, runs the command with BASE_URL, SERVER_KEY and WORKER_KEY set, and
# stops what it started by pid. DATABASE_URL and REDIS_URL are taken over where set; else the embedded Postgres works.
#   load-tests/with-gateway.sh COMMAND [ARGUMENT…]
set -euo pipefail
cd "$(dirname "$0")/.."
[ -f dist/main.js ] || { echo "dist/main.js is missing: npm run build" >&2; exit 1; }

secret() { node -p 'require("node:crypto").randomBytes(24).toString("hex")'; }
data=$(mktemp -d)
chmod 755 "$data"
port=$(node -e 'const s=require("node:net").createServer().listen(0,"127.0.0.1",()=>{console.log(s.address().port);s.close()})')
BASE_URL=http://127.0.0.1:$port
SERVER_KEY=tutti_live_loadserver_$(secret)
WORKER_KEY=tutti_live_loadworker_$(secret)
export BASE_URL SERVER_KEY WORKER_KEY

NODE_ENV=development HOST=127.0.0.1 PORT=$port LOG_LEVEL=${LOG_LEVEL:-warn} TUTTI_DATA_DIR=$data \
  TUTTI_DEV_SECRET=$(secret) TUTTI_DEV_SERVER_KEY=$SERVER_KEY TUTTI_DEV_WORKER_KEY=$WORKER_KEY \
  TUTTI_DEMO_WORKER=${TUTTI_DEMO_WORKER:-false} TUTTI_MAX_SESSIONS_PER_USER=10000 TUTTI_TENANT_COMMANDS_PER_SECOND=1000000 \
  node --max-semi-space-size=2 dist/main.js >"$data/gateway.log" 2>&1 </dev/null &
gateway=$!

finish() {
  status=$?
  trap - EXIT
  kill -TERM "$gateway" 2>/dev/null || true
  for _ in $(seq 1 200); do
    kill -0 "$gateway" 2>/dev/null || break
    sleep 0.1
  done
  if kill -9 "$gateway" 2>/dev/null; then
    # It did not drain: its Postgres is ended by the pid that stands in its data directory.
    find "$data" -name postmaster.pid -exec head -n 1 {} \; | while read -r pid; do kill -QUIT "$pid" 2>/dev/null || true; done
    echo "the gateway did not stop within 20 s of SIGTERM" >&2
    status=1
  fi
  wait "$gateway" 2>/dev/null || true
  [ "$status" = 0 ] || tail -n 40 "$data/gateway.log" >&2
  rm -rf "$data"
  exit "$status"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

node -e '
  const until = Date.now() + 60_000;
  const ask = () => fetch(process.env.BASE_URL + "/readyz").then((a) => (a.ok ? process.exit(0) : again()), again);
  const again = () => (Date.now() > until ? process.exit(1) : setTimeout(ask, 100));
  ask();
' || { echo "the gateway did not become ready" >&2; exit 1; }
"$@"
