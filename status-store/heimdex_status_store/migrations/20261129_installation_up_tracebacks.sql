-- The end of the traceback of an attempt's error. Rows without one keep NULL, so that this takes no time on any number of
-- rows.
ALTER TABLE job_events ADD COLUMN IF NOT EXISTS traceback text;

CREATE OR REPLACE VIEW job_history AS
    SELECT job_id, step, attempt, run, kind, stage, at, ended_stage, ended_attempt, started_at, seconds, error,
           delay_seconds, traceback
    FROM job_events;
