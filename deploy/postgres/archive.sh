#!/bin/sh
# Switches the archiving of WAL on, which recovery to a point in time needs. Restart the server afterwards.
#
#   PG_BIN   directory of psql; empty: the PATH
#   PGHOST, PGPORT, PGUSER, PGDATABASE, PGPASSWORD   the primary, a superuser, as libpq knows them
#   ARCHIVE  directory of the archived WAL, as the server sees it; on another disk, better on another machine
#
# What is not archived yet is lost with the machine: a segment leaves when it is full, at the latest after
# ARCHIVE_TIMEOUT seconds (60).
set -eu
: "${ARCHIVE:?directory of the archived WAL}"
psql=${PG_BIN:+$PG_BIN/}psql

# Copied beside its name and renamed, so that a segment in the archive is always whole. The same segment twice (the
# answer to the first try got lost) is well; another one of the same name is not.
command="if [ -f \"$ARCHIVE/%f\" ]; then cmp -s \"%p\" \"$ARCHIVE/%f\"; else cp \"%p\" \"$ARCHIVE/%f.part\" && sync \"$ARCHIVE/%f.part\" && mv \"$ARCHIVE/%f.part\" \"$ARCHIVE/%f\"; fi"

mkdir -p "$ARCHIVE"
"$psql" -X -q -v ON_ERROR_STOP=1 -v command="$command" -v timeout="${ARCHIVE_TIMEOUT:-60}" <<'SQL'
alter system set wal_level = 'replica';
alter system set archive_mode = 'on';
alter system set archive_command = :'command';
alter system set archive_timeout = :'timeout';
SQL
echo "Archiving to $ARCHIVE begins when the server is restarted."
