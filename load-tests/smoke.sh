#!/usr/bin/env bash
# A few seconds of every load test against a gateway of its own, with few connections: shows that the scripts and
# the gateway speak to each other and that the thresholds hold. K6 names the k6 binary; default: k6 on the PATH.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ -z "${BASE_URL:-}" ]; then exec "$here/with-gateway.sh" "$0" "$@"; fi

k6=${K6:-k6}
command -v "$k6" >/dev/null || { echo "k6 is missing; see load-tests/README.md" >&2; exit 1; }
export CONNECTIONS=${CONNECTIONS:-20} DURATION=${DURATION:-5s} RATE=${RATE:-20} ROOMS=${ROOMS:-4}
failed=0
for script in connect-idle publish-fanout reconnect-storm run-streaming; do
  echo "== $script"
  "$k6" run --quiet --no-usage-report --no-color "$here/$script.js" </dev/null || failed=1
done
exit $failed
