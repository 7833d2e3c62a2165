#!/bin/sh
# Runs once in an empty Postgres: the role of DATABASE_URL, the role the application works as, and the database.
# Neither may pass row level security.
set -eu
psql -v ON_ERROR_STOP=1 -v password="$TUTTI_DATABASE_PASSWORD" --username "${POSTGRES_USER:-postgres}" <<'SQL'
create role tutti login password :'password' nosuperuser nobypassrls;
create role tutti_app nologin nosuperuser nobypassrls;
grant tutti_app to tutti;
create database tutti owner tutti encoding 'UTF8' template template0;
SQL
