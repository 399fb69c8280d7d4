-- Apart from the column: this takes time where there are many rows. Meanwhile they can be read, and not written.
--
-- Every list is a merge of places in this one index, one a job type and status (the gateway's database.py), so that each
-- filter is exact and no filter scans what it leaves out. A row has as many index entries as before: a status that
-- moves makes new ones in any case, since jobs_unfinished depends on it; progress within a stage makes none.
CREATE INDEX IF NOT EXISTS jobs_listed ON jobs (tenant, type, status, created_at DESC, id DESC);
DROP INDEX IF EXISTS jobs_newest;
