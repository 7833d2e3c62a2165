#!/bin/sh
# Makes a standby the primary. The old primary must be down, or unable to acknowledge anything: with synchronous.sh it
# is, as its only synchronous standby leaves it here.
#
#   PG_BIN   directory of psql and pg_isready; empty: the PATH
#   PGHOST, PGPORT, PGUSER, PGPASSWORD   the standby, a superuser
#   OLD      host:port of the old primary; where it still answers, nothing is done unless FORCE=yes
set -eu
bin=${PG_BIN:+$PG_BIN/}
psql="${bin}psql -X -q -A -t -v ON_ERROR_STOP=1 -d ${PGDATABASE:-postgres}"

if [ -n "${OLD:-}" ] && [ "${FORCE:-}" != yes ]; then
  if "${bin}pg_isready" -q -t 2 -h "${OLD%:*}" -p "${OLD##*:}"; then
    echo "The old primary at $OLD answers. Stop it first, or say FORCE=yes." >&2
    exit 1
  fi
fi
if [ "$($psql -c 'select pg_is_in_recovery()')" != t ]; then echo "This server is no standby." >&2; exit 1; fi
[ "$($psql -c 'select pg_promote(true, 60)')" = t ] || { echo "It was not promoted within 60 s." >&2; exit 1; }
echo "Promoted: $($psql -c "select 'timeline ' || ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer")."
echo "There is one copy now: make the old primary's machine a standby (standby.sh), then run synchronous.sh."
