#!/bin/sh
# Lets a primary acknowledge only what a standby has on its disk too, once that standby has caught up.
#
#   synchronous.sh NAME   as given to standby.sh
#   synchronous.sh off    what is acknowledged from now on may be lost in a failover
#
#   PG_BIN   directory of psql; empty: the PATH
#   PGHOST, PGPORT, PGUSER, PGPASSWORD   the primary, a superuser
set -eu
name=${1:?name of the standby, or off}
psql="${PG_BIN:+$PG_BIN/}psql -X -q -A -t -v ON_ERROR_STOP=1 -d ${PGDATABASE:-postgres}"

if [ "$name" = off ]; then
  $psql -c "alter system set synchronous_standby_names = ''" -c "select pg_reload_conf()" >/dev/null
  echo "The primary waits for nobody."
  exit 0
fi
tries=0
until [ "$($psql -c "select count(*) from pg_stat_replication where application_name = '$name' and state = 'streaming'")" = 1 ]; do
  tries=$((tries + 1))
  if [ $tries -gt "${WAIT_SECONDS:-60}" ]; then echo "No standby $name streams from this server." >&2; exit 1; fi
  sleep 1
done
# In quotes: first and any are words of the setting itself.
$psql -c "alter system set synchronous_standby_names = 'FIRST 1 (\"$name\")'" -c "select pg_reload_conf()" >/dev/null
echo "The primary waits for $name."
