"""Every write to Postgres, each a named statement with a function."""

import json
from collections.abc import Sequence
from typing import Any, Final

import asyncpg

from heimdex_status_store.rows import EventRow, JobRow

#: Raise each job's row to the highest rank seen, and add to the history, in one statement: one round trip, one commit.
#: pending -> processing -> completed | failed | canceled; a lower or an equal rank changes nothing.
RECORD: Final = """
WITH history AS (
    INSERT INTO job_events (job_id, step, attempt, run, kind, stage, at,
                            ended_stage, ended_attempt, started_at, seconds, error, delay_seconds)
    SELECT * FROM unnest($15::uuid[], $16::int[], $17::int[], $18::int[], $19::text[], $20::text[], $21::timestamptz[],
                         $22::text[], $23::int[], $24::timestamptz[], $25::float8[], $26::text[], $27::float8[])
    ON CONFLICT DO NOTHING
)
INSERT INTO jobs AS old (id, type, run, step, attempt, progress, status, stage, result, error,
                         created_at, updated_at, message)
SELECT id, type, run, step, attempt, progress, status, stage, result, error, created_at, updated_at, message
FROM unnest($1::uuid[], $2::text[], $3::int[], $4::int[], $5::int[], $6::int[], $7::text[], $8::text[], $9::json[],
            $10::text[], $11::timestamptz[], $12::timestamptz[], $13::json[], $14::bool[])
  AS new (id, type, run, step, attempt, progress, status, stage, result, error,
          created_at, updated_at, message, only_ticks)
-- A tick may only raise the row of the message that it belongs to: what was told of a stage's progress then
-- implies that the hand-over to this stage is recorded.
WHERE NOT only_ticks OR EXISTS (SELECT FROM jobs WHERE jobs.id = new.id AND jobs.step = new.step)
ON CONFLICT (id) DO UPDATE SET
    run = EXCLUDED.run,
    step = EXCLUDED.step,
    attempt = EXCLUDED.attempt,
    progress = CASE
        WHEN EXCLUDED.status = 'completed' OR EXCLUDED.run <> old.run THEN EXCLUDED.progress
        ELSE LEAST(99, GREATEST(old.progress, EXCLUDED.progress))
    END,
    status = EXCLUDED.status,
    stage = EXCLUDED.stage,
    result = EXCLUDED.result,
    error = EXCLUDED.error,
    updated_at = GREATEST(old.updated_at, EXCLUDED.updated_at),
    message = CASE WHEN EXCLUDED.status <> 'completed' THEN COALESCE(EXCLUDED.message, old.message) END
WHERE (EXCLUDED.step, EXCLUDED.attempt, EXCLUDED.progress) > (old.step, old.attempt, old.progress)
"""


async def record(connection: asyncpg.Connection, jobs: Sequence[JobRow], events: Sequence[EventRow]) -> int:
    """Write one batch; `jobs` sorted by id, one row a job. Returns how many jobs' rows rose: 0 for a pure replay."""
    status = await connection.execute(RECORD, *_job_columns(jobs), *_event_columns(events))
    return int(status.rpartition(" ")[2])


def _job_columns(rows: Sequence[JobRow]) -> list[list[Any]]:
    return [
        [row.job.job_id for row in rows],
        [row.job.type for row in rows],
        [row.job.run for row in rows],
        [row.job.step for row in rows],
        [row.job.attempt for row in rows],
        [row.job.progress for row in rows],
        [row.job.status for row in rows],
        [row.job.stage for row in rows],
        [None if row.job.result is None else json.dumps(row.job.result) for row in rows],
        [row.job.error for row in rows],
        [row.job.created_at for row in rows],
        [row.job.updated_at for row in rows],
        [_kept(row) for row in rows],
        [row.only_ticks for row in rows],
    ]


def _kept(row: JobRow) -> str | None:
    if row.message is None or row.job.status == "completed":
        return None
    return row.message.decode()


def _event_columns(rows: Sequence[EventRow]) -> list[list[Any]]:
    return [[getattr(row, name) for row in rows] for name in EventRow.__struct_fields__]
