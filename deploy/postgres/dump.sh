#!/bin/sh
# Writes the database to one file, which any Postgres of this version or a newer one can load.
#
#   dump.sh FILE
#
#   PG_BIN   directory of pg_dump; empty: the PATH
#   PGHOST, PGPORT, PGUSER, PGDATABASE, PGPASSWORD   a server, the primary or a standby; a superuser, as the policies
#                                                    of the tables hide their rows from everybody else
set -eu
file=${1:?file to write}
"${PG_BIN:+$PG_BIN/}pg_dump" --no-password -Fc -f "$file.part"
mv "$file.part" "$file"
echo "$file"
