#!/bin/sh
# Loads what dump.sh wrote into an empty database. Stop the gateways first. Roles are in no dump: that of DATABASE_URL,
# which owned the tables, has to be there, as deploy/compose/postgres-roles.sh makes it; the application's is made here.
#
#   load.sh FILE
#
#   PG_BIN     directory of psql and pg_restore; empty: the PATH
#   PGHOST, PGPORT, PGUSER, PGDATABASE, PGPASSWORD   the database to load into, a superuser
#   APP_ROLE   TUTTI_DB_APP_ROLE of the gateways (tutti_app)
set -eu
file=${1:?file to load}
bin=${PG_BIN:+$PG_BIN/}

"${bin}psql" -X -q -v ON_ERROR_STOP=1 -v app="${APP_ROLE:-tutti_app}" <<'SQL'
select format('create role %I nologin', :'app') where not exists (select from pg_roles where rolname = :'app') \gexec
SQL
"${bin}pg_restore" --no-password --exit-on-error --single-transaction -d "${PGDATABASE:-postgres}" "$file"
"${bin}psql" -X -q -c analyze
echo "Loaded $file."
