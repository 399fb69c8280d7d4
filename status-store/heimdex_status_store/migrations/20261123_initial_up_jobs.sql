-- One row a job: the highest-ranked of its events (heimdex_contracts.lifecycle.rank).
CREATE TABLE IF NOT EXISTS jobs (
    id uuid PRIMARY KEY,
    type text NOT NULL,
    run integer NOT NULL,
    step integer NOT NULL,
    attempt integer NOT NULL,
    progress smallint NOT NULL CHECK (progress BETWEEN 0 AND 100),
    status text NOT NULL CHECK (status IN ('pending', 'processing', 'completed', 'failed', 'canceled')),
    stage text,
    result json,
    error text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    -- The newest message of the job, to publish it again should the stream lose it, or to run it again after a
    -- failure. A completed job needs none.
    message json,
    CHECK ((progress = 100) = (status = 'completed')),
    CHECK ((result IS NOT NULL) = (status = 'completed')),
    CHECK ((error IS NOT NULL) = (status = 'failed')),
    CHECK (updated_at >= created_at)
-- Room in each page for the next versions of its rows: progress within a stage touches no index.
) WITH (fillfactor = 80);

CREATE INDEX IF NOT EXISTS jobs_newest ON jobs (created_at DESC, id DESC);
-- The unfinished ones are few: what the sweep compares with the stream.
CREATE INDEX IF NOT EXISTS jobs_unfinished ON jobs (id) WHERE status IN ('pending', 'processing');

-- Every hand-over (attempt 0) and every attempt that ended in an error. Written once, never changed.
CREATE TABLE IF NOT EXISTS job_events (
    job_id uuid NOT NULL,
    step integer NOT NULL,
    attempt integer NOT NULL,
    run integer NOT NULL,
    kind text NOT NULL,
    stage text,
    at timestamptz NOT NULL,
    -- The attempt that this event ended, where it ended one.
    ended_stage text,
    ended_attempt integer,
    started_at timestamptz,
    seconds double precision,
    error text,
    delay_seconds double precision,
    PRIMARY KEY (job_id, step, attempt)
);

-- When the stream that these rows were recorded from was created: how the sweep notices that either was replaced.
CREATE TABLE IF NOT EXISTS stream_seen (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    created text NOT NULL
);

-- The mark shares the fate of the rows: whoever empties the table makes the sweep read the stream again.
CREATE OR REPLACE FUNCTION forget_stream() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM stream_seen;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER jobs_emptied AFTER TRUNCATE ON jobs FOR EACH STATEMENT EXECUTE FUNCTION forget_stream();

-- What the gateway reads: the status, the message that a retry starts from, the history. The tables are ours alone.
-- (A later migration gives job_status and job_messages more columns. Where something else was removed, and all of them
-- run again, the ones that are there must stay: a view cannot be replaced by one with fewer.)
DO $$
BEGIN
    IF to_regclass('job_status') IS NULL THEN
        CREATE VIEW job_status AS
            SELECT id, type, run, step, attempt, progress, status, stage, result, error, created_at, updated_at
            FROM jobs;
    END IF;
    IF to_regclass('job_messages') IS NULL THEN
        CREATE VIEW job_messages AS SELECT id, message FROM jobs;
    END IF;
END $$;
CREATE OR REPLACE VIEW job_history AS SELECT * FROM job_events;
