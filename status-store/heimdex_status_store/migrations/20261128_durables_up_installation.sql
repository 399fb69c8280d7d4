-- Which installation this database is of, as the stream HEIMDEX_JOBS says it too: one row.
CREATE TABLE IF NOT EXISTS installation (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    -- The database's own. One that was emptied has another.
    database uuid NOT NULL DEFAULT gen_random_uuid(),
    -- The installation's; not known until a status store has compared it with the stream's. What an operator may have
    -- marked the stream with is any text.
    id text,
    -- When it was refused, since it had none and another database's status store lived.
    refused_at timestamptz
);
INSERT INTO installation DEFAULT VALUES ON CONFLICT DO NOTHING;

-- Where these rows are: a copy of a database (a restored dump, a template) has their ids, and is another database all the
-- same. A standby that takes over is the same one.
CREATE OR REPLACE FUNCTION this_database() RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT system_identifier || '/' || oid FROM pg_control_system(), pg_database WHERE datname = current_database());
EXCEPTION WHEN insufficient_privilege OR undefined_function THEN
    RETURN '';
END $$;

CREATE OR REPLACE VIEW job_installation AS
    SELECT id, left(encode(sha256(convert_to(database || '/' || this_database(), 'UTF8')), 'hex'), 32)::uuid::text AS database
    FROM installation;
