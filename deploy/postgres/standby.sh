#!/bin/sh
# Makes a data directory that, once a server is started on it, follows a primary by streaming. Afterwards, synchronous.sh
# lets the primary wait for it.
#
#   standby.sh NAME
#
#   NAME     of the standby: [a-z0-9_], also the name of its replication slot
#   PG_BIN   directory of pg_basebackup and psql; empty: the PATH
#   PGHOST, PGPORT, PGUSER, PGPASSWORD   the primary, a superuser or a role with REPLICATION
#   PGDATA   the data directory to make; must not be there, or be empty
#
# To make an old primary the standby of its successor, move its data directory away first: it may hold what nobody
# else has.
set -eu
: "${PGDATA:?the data directory to make}"
name=${1:?name of the standby}
bin=${PG_BIN:+$PG_BIN/}

"${bin}psql" -X -q -v ON_ERROR_STOP=1 -v name="$name" -d "${PGDATABASE:-postgres}" >/dev/null <<'SQL'
select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = :'name' and not active;
SQL
"${bin}pg_basebackup" -D "$PGDATA" -d "application_name=$name" -R -C -S "$name" -X stream -c fast --no-password

# What came along from the primary and is not this server's. It waits for no standby of its own after a promotion
# until it is told to.
cat >>"$PGDATA/postgresql.auto.conf" <<CONF
synchronous_standby_names = ''
recovery_target_time = ''
tutti.restored = ''
CONF
echo "Start the server on $PGDATA, then run synchronous.sh $name."
