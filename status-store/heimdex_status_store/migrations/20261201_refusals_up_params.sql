-- The parameters of a job, written once: no event of the job repeats them. And what the stages of a completed job
-- returned, by their names, without the last one's, which is in `result`: its message is not kept.
ALTER TABLE jobs ADD COLUMN IF NOT EXISTS params json;
ALTER TABLE jobs ADD COLUMN IF NOT EXISTS outputs json;
-- Not compressed: that would cost more than it saves, at every hand-over.
ALTER TABLE jobs ALTER COLUMN params SET STORAGE EXTERNAL;
ALTER TABLE jobs ALTER COLUMN outputs SET STORAGE EXTERNAL;
ALTER TABLE jobs ALTER COLUMN message SET STORAGE EXTERNAL;
ALTER TABLE jobs ALTER COLUMN result SET STORAGE EXTERNAL;

CREATE OR REPLACE VIEW job_messages AS SELECT id, message, params, outputs FROM jobs;
