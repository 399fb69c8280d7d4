-- The jobs that workers refuse, because none of those that took them knows the job's type with its stage: one row a job,
-- of its newest refused step. It is deleted when the job has gone on.
CREATE TABLE IF NOT EXISTS refusals (
    job_id uuid PRIMARY KEY,
    step integer NOT NULL,
    type text NOT NULL,
    stage text NOT NULL,
    -- Of this step.
    first_at timestamptz NOT NULL
);
