-- Whose a job is. At once on any number of rows: the default is kept beside them, not written into them. It stays, for
-- a store of before, which says nothing of tenants.
ALTER TABLE jobs ADD COLUMN IF NOT EXISTS tenant text NOT NULL DEFAULT 'default';

-- A later migration may give job_status more columns. Where all migrations run again, the view that is there must stay.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = to_regclass('job_status') AND attname = 'tenant' AND NOT attisdropped
    ) THEN
        CREATE OR REPLACE VIEW job_status AS
            SELECT id, type, run, step, attempt, progress, status, stage, result, error, created_at, updated_at, tenant
            FROM jobs;
    END IF;
END $$;
