#!/bin/sh
# Makes a data directory that, once a server is started on it, recovers to a point in time and goes on from there on a
# timeline of its own. Stop the gateways and the server that is to be replaced first.
#
#   restore.sh BACKUP [TIME]
#
#   BACKUP   directory of a base backup, from before TIME
#   TIME     like 2026-11-23 17:05:00+00; without it, up to the last WAL in the archive
#   PGDATA   the data directory to make; must not be there, or be empty
#   ARCHIVE  directory of the archived WAL
#   DRILL    yes: archives nothing, so that a restore for practice does not write into the archive of the real one
set -eu
: "${PGDATA:?the data directory to make}" "${ARCHIVE:?directory of the archived WAL}"
backup=${1:?directory of a base backup}
time=${2:-}

[ -f "$backup/PG_VERSION" ] || { echo "$backup is no base backup." >&2; exit 1; }
mkdir -p "$PGDATA"
if [ -n "$(ls -A "$PGDATA")" ]; then echo "$PGDATA is not empty." >&2; exit 1; fi
chmod 700 "$PGDATA"
cp -R "$backup/." "$PGDATA/"
rm -f "$PGDATA/standby.signal"
touch "$PGDATA/recovery.signal"

# The last of several settings of a name counts. tutti.restored tells the first gateway that positions from before may
# mean other events, also where promotions are otherwise known to lose nothing.
cat >>"$PGDATA/postgresql.auto.conf" <<CONF
restore_command = 'cp "$ARCHIVE/%f" "%p"'
recovery_target_time = '$time'
recovery_target_action = 'promote'
recovery_target_timeline = 'latest'
primary_conninfo = ''
primary_slot_name = ''
synchronous_standby_names = ''
tutti.restored = '$(basename "$backup")'
CONF
[ "${DRILL:-}" != yes ] || echo "archive_mode = 'off'" >>"$PGDATA/postgresql.auto.conf"
echo "Start the server on $PGDATA. It takes writes when \"select pg_is_in_recovery()\" says f."
