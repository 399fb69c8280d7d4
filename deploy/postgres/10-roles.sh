#!/bin/sh
# Creates the two roles that the services log in as. The official image's entrypoint runs this script (or sources it, if
# it is not executable) once, when the data volume is new. To change a password later, see docs/operations.md, "Users
# and passwords".
set -e

psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set database="$POSTGRES_DB" \
    --set store_password="${HEIMDEX_POSTGRES_STORE_PASSWORD:?is not set}" \
    --set gateway_password="${HEIMDEX_POSTGRES_GATEWAY_PASSWORD:?is not set}" <<'SQL'
begin;

-- The status store owns the tables and runs their migrations.
create role heimdex_store login password :'store_password';
alter database :"database" owner to heimdex_store;
alter schema public owner to heimdex_store;

-- The gateway only reads. Default privileges cover everything that the status store will create, so a migration does
-- not have to grant any; they cover schemas too, in case a migration creates one.
create role heimdex_gateway login password :'gateway_password';
alter role heimdex_gateway set default_transaction_read_only = on;
revoke all on database :"database" from public;
grant connect on database :"database" to heimdex_gateway;
revoke all on schema public from public;
grant usage on schema public to heimdex_gateway;
alter default privileges for role heimdex_store grant usage on schemas to heimdex_gateway;
alter default privileges for role heimdex_store grant select on tables to heimdex_gateway;

commit;
SQL
