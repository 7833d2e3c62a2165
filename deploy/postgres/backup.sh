#!/bin/sh
# Takes a base backup: where a recovery to a point in time begins. Run it daily; keep the WAL archived since the
# oldest backup that is kept.
#
#   PG_BIN   directory of pg_basebackup and pg_verifybackup; empty: the PATH
#   PGHOST, PGPORT, PGUSER, PGPASSWORD   the primary or a standby, a role with REPLICATION
#   BACKUPS  directory of the backups; each gets a directory in it, named by its time
#
# Prints the directory of the backup, once it is complete and verified.
set -eu
: "${BACKUPS:?directory of the backups}"
bin=${PG_BIN:+$PG_BIN/}
name=$(date -u +%Y%m%dT%H%M%SZ)

mkdir -p "$BACKUPS"
"${bin}pg_basebackup" -D "$BACKUPS/$name.part" -X stream -c fast --no-password
"${bin}pg_verifybackup" -q "$BACKUPS/$name.part"
mv "$BACKUPS/$name.part" "$BACKUPS/$name"
echo "$BACKUPS/$name"
