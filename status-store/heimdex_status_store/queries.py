"""The status store's writes to Postgres, and the reads that belong to them: a named statement and a function each."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from types import UnionType
from typing import Any, Final, get_args, get_origin

import asyncpg
import msgspec

from heimdex_contracts.history import EventRow
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import End
from heimdex_status_store.projection import JobRow


def _type_in_postgres(annotation: Any) -> str:
    """Return the Postgres type of a field with this Python type, which may be optional."""
    types = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    (kind,) = (member for member in types if member is not type(None))
    return {str: "text", int: "int", float: "float8", datetime: "timestamptz", msgspec.Raw: "json"}.get(
        get_origin(kind) or kind, "text"
    )


def _columns(row: type[msgspec.Struct], **overrides: tuple[str, str]) -> dict[str, str]:
    """Map each column to its type, in the order of the fields of `row`.

    overrides: the name and type of a column, by the name of its field, where they differ from the field's.
    """
    return dict(
        overrides.get(field.name, (field.name, _type_in_postgres(field.type))) for field in msgspec.structs.fields(row)
    )


def _arrays(columns: dict[str, str], first: int = 1) -> str:
    """Build the arguments of `unnest` for these columns, numbered from `$first`."""
    return ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(columns.values(), first))


#: The columns of `jobs`: the fields of Snapshot, the job's newest message, and the outputs of a completed job.
JOB_COLUMNS: Final = {
    column: kind for column, kind in _columns(Snapshot, job_id=("id", "uuid")).items() if column != "finished"
} | {"message": "json", "outputs": "json"}
#: The columns of the input of RECORD, which has two columns more.
_INCOMING: Final = JOB_COLUMNS | {"needs_params": "bool", "attempt_only": "bool"}
#: The columns of `job_events`: the fields of EventRow.
EVENT_COLUMNS: Final = _columns(EventRow, job_id=("job_id", "uuid"))
_JOBS: Final = ", ".join(JOB_COLUMNS)
_RESULT: Final = list(JOB_COLUMNS).index("result")
_PARAMS: Final = list(JOB_COLUMNS).index("params")
_EVENTS: Final = ", ".join(EVENT_COLUMNS)

#: Raises each job's row to the highest rank seen, and adds the events to the history, in one statement: one round trip,
#: one commit. The status moves pending -> processing -> completed | failed | canceled. An event of lower or equal rank
#: changes nothing (except `updated_at`, see below), and neither does an event of a run that is in a terminal state.
RECORD: Final = f"""
WITH incoming AS (
    SELECT * FROM unnest({_arrays(_INCOMING)}) AS new ({", ".join(_INCOMING)})
), early AS (
    -- A tick or a failed attempt may raise a job's row only after the hand-over of its stage is recorded. A row that
    -- shows an attempt of a stage then always contains that hand-over, in case the stream loses it. An attempt event
    -- that arrives before its hand-over must be redelivered.
    SELECT id FROM incoming
    WHERE attempt_only AND NOT EXISTS (SELECT FROM jobs WHERE jobs.id = incoming.id AND jobs.step >= incoming.step)
), lacking AS (
    -- A job's parameters are sent with its first message only. A row that would be without them is not written yet:
    -- `record` sends these jobs again, with their parameters. A subquery, since for a join, Postgres may read all rows.
    SELECT id FROM incoming
    WHERE needs_params
      AND COALESCE((SELECT jobs.params IS NULL FROM jobs WHERE jobs.id = incoming.id), incoming.params IS NULL)
), history AS (
    INSERT INTO job_events ({_EVENTS})
    SELECT * FROM unnest({_arrays(EVENT_COLUMNS, len(_INCOMING) + 1)}) AS new ({_EVENTS})
    WHERE NOT EXISTS (SELECT FROM lacking WHERE lacking.id = new.job_id)
    ON CONFLICT DO NOTHING
), raised AS (
    INSERT INTO jobs AS old ({_JOBS})
    SELECT {_JOBS}
    FROM incoming
    WHERE NOT EXISTS (SELECT FROM early WHERE early.id = incoming.id)
      AND NOT EXISTS (SELECT FROM lacking WHERE lacking.id = incoming.id)
    ORDER BY id -- two stores that lock rows in different orders would deadlock
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
        message = CASE
            WHEN EXCLUDED.status = 'completed' THEN EXCLUDED.message
            ELSE COALESCE(EXCLUDED.message, old.message)
        END,
        outputs = EXCLUDED.outputs
    WHERE (EXCLUDED.step, EXCLUDED.attempt, EXCLUDED.progress) > (old.step, old.attempt, old.progress)
           -- Only the next run may follow a terminal state.
           AND (EXCLUDED.run > old.run OR old.status IN ('pending', 'processing'))
        -- A tick without progress shows only that the stage is still running.
        OR (EXCLUDED.step, EXCLUDED.attempt, EXCLUDED.progress) = (old.step, old.attempt, old.progress)
           AND EXCLUDED.updated_at > old.updated_at
           AND EXCLUDED.status = 'processing' AND old.status = 'processing'
    RETURNING 1
)
SELECT (SELECT count(*) FROM raised), ARRAY(SELECT id::text FROM early), ARRAY(SELECT id::text FROM lacking)
"""  # noqa: S608  # our own columns


class WriteResult(msgspec.Struct, frozen=True):
    """The result of writing one batch.

    raised: how many rows were raised; 0 if the batch contained only events that were already recorded.
    early: the ids of jobs with an attempt event that arrived before its hand-over.
    ahead: job id and step of each attempt event that must be redelivered separately (`projection.ahead`).
    strays: job id and step of each checked terminal event that did not end its run (`strays`).
    """

    raised: int
    early: frozenset[str]
    ahead: frozenset[tuple[str, int]] = frozenset()
    strays: frozenset[tuple[str, int]] = frozenset()


#: Adds the parameters of jobs to rows that lack them: those of a store that did not know them yet.
ADD_PARAMS: Final = """
UPDATE jobs SET params = new.params FROM unnest($1::uuid[], $2::json[]) AS new (id, params)
WHERE jobs.id = new.id AND jobs.params IS NULL
"""


async def record(
    connection: asyncpg.Connection, jobs: Sequence[JobRow], events: Sequence[EventRow], *, refill: bool = False
) -> WriteResult:
    """Write one batch. jobs: one row per job, sorted by id. refill: rows may be missing, so all parameters are sent."""
    columns = _job_columns(jobs, [row.is_new or refill for row in jobs], needed=True)
    ((raised, early, lacking),) = await connection.fetch(RECORD, *columns, *_event_columns(events))
    if lacking:
        ids = frozenset(lacking)
        jobs = [row for row in jobs if row.job.job_id in ids]
        columns = _job_columns(jobs, [True] * len(jobs), needed=False)
        await connection.execute(ADD_PARAMS, columns[0], columns[_PARAMS])
        events = [event for event in events if event.job_id in ids]
        ((more, _, _),) = await connection.fetch(RECORD, *columns, *_event_columns(events))
        raised += more
    return WriteResult(raised, frozenset(early))


#: Terminal events of runs that another terminal event has ended: of a cancel or a retry that arrived too late.
STRAYS: Final = """
SELECT terminal.id::text, terminal.step
FROM unnest($1::uuid[], $2::int[], $3::int[]) AS terminal (id, run, step)
JOIN jobs ON jobs.id = terminal.id AND jobs.run = terminal.run AND jobs.step <> terminal.step
"""


async def strays(connection: asyncpg.Connection, ends: Sequence[End]) -> frozenset[tuple[str, int]]:
    """Return job id and step of those terminal events that did not end their runs. All of `ends` must be recorded."""
    columns = [[end.job_id for end in ends], [end.run for end in ends], [end.step for end in ends]]
    return frozenset((row[0], row[1]) for row in await connection.fetch(STRAYS, *columns))


def _job_columns(rows: Sequence[JobRow], with_params: Sequence[bool], *, needed: bool) -> list[list[Any]]:
    """The columns of _INCOMING. with_params: the rows whose parameters are sent. needed: the others must have them."""
    columns = [[getattr(row.job, name) for row in rows] for name in Snapshot.__struct_fields__ if name != "finished"]
    columns[_RESULT] = list(map(_text, columns[_RESULT]))
    columns[_PARAMS] = [
        _text(params) if is_sent else None for params, is_sent in zip(columns[_PARAMS], with_params, strict=True)
    ]
    return [
        *columns,
        [_text(row.message) for row in rows],
        [_text(row.outputs) for row in rows],
        [needed and bool(row.job.params) for row in rows],
        [row.attempt_only for row in rows],
    ]


def _text(encoded: bytes | msgspec.Raw | None) -> str | None:
    """Return the JSON as text, None for none. Raises UnicodeDecodeError."""
    return bytes(encoded).decode() if encoded else None


def _event_columns(rows: Sequence[EventRow]) -> list[list[Any]]:
    return [[getattr(row, name) for row in rows] for name in EventRow.__struct_fields__]


#: Adds the results of callback attempts to the history. A job that retention has deleted meanwhile gets no new history.
RECORD_CALLBACKS: Final = f"""
INSERT INTO job_events ({_EVENTS})
SELECT * FROM unnest({_arrays(EVENT_COLUMNS)}) AS new ({_EVENTS})
WHERE EXISTS (SELECT FROM jobs WHERE jobs.id = new.job_id)
ON CONFLICT DO NOTHING
"""  # noqa: S608  # our own columns


async def record_callbacks(connection: asyncpg.Connection, events: Sequence[EventRow]) -> None:
    """Add the results of callback attempts to the histories of their jobs. A callback changes nothing else of a job."""
    await connection.execute(RECORD_CALLBACKS, *_event_columns(events))


#: The finished jobs whose callback is neither delivered nor given up, each with its terminal event and the number of
#: callback attempts so far. Among them may be jobs without a callback: only their message says.
CALLBACKS_DUE: Final = """
SELECT id::text, message::text,
       COALESCE((SELECT max(attempt) FROM job_events WHERE job_id = jobs.id AND job_events.step = jobs.step), 0)
FROM jobs
WHERE status IN ('completed', 'failed', 'canceled') AND message::text LIKE '%"callback_url"%' -- without parsing it
  AND ($1::uuid IS NULL OR id > $1)
  AND NOT EXISTS (SELECT FROM job_events WHERE job_id = jobs.id AND job_events.step = jobs.step
                  AND kind IN ('callback_delivered', 'callback_given_up'))
ORDER BY jobs.id LIMIT $2
"""


async def callbacks_due(connection: asyncpg.Connection, after: str | None, limit: int) -> list[tuple[str, str, int]]:
    """Return the next page after this job id (None: the first): job id, message as JSON, number of attempts.

    Reads the whole table.
    """
    return [tuple(row) for row in await connection.fetch(CALLBACKS_DUE, after, limit)]


class Unfinished(msgspec.Struct, frozen=True):
    """The row of an unfinished job.

    in_back_off: the delay before the next attempt is not over, by the clock of the worker that started it.
    """

    job_id: str
    step: int
    progress: int
    started: bool
    updated_at: datetime
    failed_attempts: int
    in_back_off: bool


class UnfinishedMessage(Unfinished, frozen=True):
    """The row of an unfinished job with its newest message. message, params: the columns, as JSON (`patches.whole`)."""

    message: str
    params: str | None


_UNFINISHED_COLUMNS: Final = """
       id::text, step, progress, status = 'processing', updated_at,
       COALESCE((SELECT max(attempt) FROM job_events WHERE job_id = jobs.id AND job_events.step = jobs.step), 0),
       EXISTS (SELECT FROM job_events WHERE job_id = jobs.id AND job_events.step = jobs.step
               AND at + delay_seconds * interval '1 second' > now())
"""
_UNFINISHED_ROWS: Final = "FROM jobs WHERE status IN ('pending', 'processing') AND message IS NOT NULL"

#: If a row's `updated_at` is further than this in the future, it comes from another clock: the row's age is unknown.
AHEAD: Final = timedelta(seconds=5)

#: The messages of a page's jobs have at most this many bytes, and those of one job more: the reconciler receives the
#: newest message of each job from the stream.
UNFINISHED_BYTES: Final = 4 * 1024 * 1024

#: A page of the unfinished jobs, in the order of their ids, and whether there are more. Of messages and parameters it
#: reads the sizes only: on an idle system with 100,000 unfinished jobs, they would be most of the store's work.
UNFINISHED: Final = f"""
WITH page AS (
    SELECT id, COALESCE(pg_column_size(message), 0) + COALESCE(pg_column_size(params), 0) AS bytes
    {_UNFINISHED_ROWS}
    AND ($1::uuid IS NULL OR id > $1)
    AND ($2::interval IS NULL OR updated_at <= now() - $2 OR updated_at > now() + $3::interval)
    ORDER BY id LIMIT $4 + 1
), sized AS (
    SELECT id, row_number() OVER (ORDER BY id) AS number, sum(bytes) OVER (ORDER BY id) AS bytes FROM page
), kept AS (
    SELECT id FROM sized WHERE number = 1 OR (number <= $4 AND bytes <= $5)
)
SELECT {_UNFINISHED_COLUMNS}, (SELECT count(*) FROM page) > (SELECT count(*) FROM kept)
FROM kept JOIN jobs USING (id) ORDER BY jobs.id
"""  # noqa: S608  # our own columns
UNFINISHED_ROW: Final = f"""
SELECT {_UNFINISHED_COLUMNS}, message::text, params::text {_UNFINISHED_ROWS} AND id = $1
"""


async def unfinished(
    connection: asyncpg.Connection, after: str | None, rest: timedelta | None, limit: int, max_bytes: int
) -> tuple[list[Unfinished], bool]:
    """Return the next page after this job id (None: the first) of unfinished jobs, and whether there are more.

    rest: only rows not updated for at least this time, and rows whose age is unknown; None for all rows. max_bytes: the
    maximum of their messages and parameters together; one job may have more.
    """
    rows = await connection.fetch(UNFINISHED, after, rest, AHEAD, limit, max_bytes)
    return [Unfinished(*row[:-1]) for row in rows], bool(rows and rows[0][-1])


async def unfinished_row(connection: asyncpg.Connection, job_id: str) -> UnfinishedMessage | None:
    """Return the row of an unfinished job, or None if the job is finished or has no row."""
    row = await connection.fetchrow(UNFINISHED_ROW, job_id)
    return None if row is None else UnfinishedMessage(*row)


class StreamSeen(msgspec.Struct, frozen=True):
    """The stream from which these rows were recorded: its creation time, and that of each durable consumer, by name."""

    created: str
    durables: dict[str, str]


async def stream_seen(connection: asyncpg.Connection) -> StreamSeen | None:
    """Return the stream that the rows were recorded from, or None if this database has not seen one yet."""
    row = await connection.fetchrow("SELECT created, durables FROM stream_seen")
    return None if row is None else StreamSeen(row[0], msgspec.json.decode(row[1]) if row[1] else {})


async def has_no_jobs(connection: asyncpg.Connection) -> bool:
    """Whether the table `jobs` is empty."""
    return not await connection.fetchval("SELECT EXISTS (SELECT FROM jobs)")


async def mark_stream_seen(connection: asyncpg.Connection, seen: StreamSeen) -> None:
    """Record that the rows agree with this stream."""
    await connection.execute(
        "INSERT INTO stream_seen (created, durables) VALUES ($1, $2)"
        " ON CONFLICT (one) DO UPDATE SET created = EXCLUDED.created, durables = EXCLUDED.durables",
        seen.created,
        msgspec.json.encode(seen.durables).decode(),
    )


class RefusedStep(msgspec.Struct, frozen=True):
    """A job that workers refused at this step, and when that happened for the first time. The columns of `refusals`."""

    job_id: str
    step: int
    type: str
    stage: str
    first_at: datetime


_REFUSED: Final = _columns(RefusedStep, job_id=("job_id", "uuid"))
_REFUSED_COLUMNS: Final = ", ".join(_REFUSED)
#: Sorts before every job id.
_FIRST_ID: Final = "00000000-0000-0000-0000-000000000000"

#: Adds the refused steps that are new, and returns each one with the time of its first refusal, and whether its job has
#: gone on; such a step is not added. The subqueries look up each job by its id. For a join, Postgres would read a whole
#: table that it has not analyzed yet.
RECORD_REFUSALS: Final = f"""
WITH incoming AS (
    SELECT * FROM unnest({_arrays(_REFUSED)}) AS new ({_REFUSED_COLUMNS})
), seen AS (
    SELECT incoming.*, COALESCE((
        SELECT jobs.step > incoming.step OR jobs.status NOT IN ('pending', 'processing')
        FROM jobs WHERE jobs.id = incoming.job_id
    ), false) AS gone_on
    FROM incoming
), added AS (
    INSERT INTO refusals AS old ({_REFUSED_COLUMNS})
    SELECT {_REFUSED_COLUMNS} FROM seen WHERE NOT gone_on
    ORDER BY job_id -- two stores that lock rows in different orders would deadlock
    ON CONFLICT (job_id) DO UPDATE
        SET step = EXCLUDED.step, type = EXCLUDED.type, stage = EXCLUDED.stage, first_at = EXCLUDED.first_at
        WHERE old.step < EXCLUDED.step
)
SELECT job_id::text, step, type, stage, COALESCE((
    SELECT refusals.first_at FROM refusals WHERE refusals.job_id = seen.job_id AND refusals.step = seen.step
), first_at), gone_on
FROM seen
"""  # noqa: S608  # our own columns


async def record_refusals(
    connection: asyncpg.Connection, steps: Sequence[RefusedStep]
) -> list[tuple[RefusedStep, bool]]:
    """Add refused steps, one per job. Returns each with the time of its first refusal, and whether its job went on."""
    columns = [[getattr(step, name) for step in steps] for name in RefusedStep.__struct_fields__]
    return [(RefusedStep(*row[:-1]), row[-1]) for row in await connection.fetch(RECORD_REFUSALS, *columns)]


REFUSED_PAGE: Final = """
SELECT job_id::text, step, type, stage, first_at FROM refusals
WHERE job_id > $1 ORDER BY job_id LIMIT $2
"""


async def refused_page(connection: asyncpg.Connection, after: str | None, limit: int) -> list[RefusedStep]:
    """Return the next page of refused steps after this job id (None: the first)."""
    return [RefusedStep(*row) for row in await connection.fetch(REFUSED_PAGE, after or _FIRST_ID, limit)]


#: Deletes the refused steps of one page whose jobs have gone on, or do not exist after some time.
CLEAN_UP_REFUSALS: Final = """
WITH page AS (
    SELECT job_id, step, COALESCE((
        SELECT jobs.step > refusals.step OR jobs.status NOT IN ('pending', 'processing')
        FROM jobs WHERE jobs.id = refusals.job_id
    ), first_at < now() - $2::interval) AS is_removed
    FROM refusals WHERE job_id > $1 ORDER BY job_id LIMIT $3
), removed AS (
    DELETE FROM refusals USING page
    WHERE is_removed AND refusals.job_id = page.job_id AND refusals.step = page.step
)
SELECT job_id::text, step, is_removed FROM page ORDER BY job_id
"""


async def delete_refusals(connection: asyncpg.Connection, job_ids: Sequence[str]) -> None:
    """Delete the refusals of these jobs, so that their next refusal is the first one."""
    await connection.execute("DELETE FROM refusals WHERE job_id = ANY ($1::uuid[])", job_ids)


async def clean_up_refusals(
    connection: asyncpg.Connection, after: str | None, orphaned_after: timedelta, limit: int
) -> list[tuple[str, int, bool]]:
    """Delete the refused steps of one page whose jobs have gone on. Returns the page: job id, step, whether deleted.

    after: the job id after which the page begins (None: the first page). orphaned_after: the age at which a refused
    step whose job has no row is deleted.
    """
    return [tuple(row) for row in await connection.fetch(CLEAN_UP_REFUSALS, after or _FIRST_ID, orphaned_after, limit)]


class JobState(msgspec.Struct, frozen=True):
    """What a job's row says: its step, whether it is in a terminal state, and the time of its last event."""

    step: int
    ended: bool
    updated_at: datetime


async def job_states(connection: asyncpg.Connection, job_ids: Sequence[str]) -> dict[str, JobState]:
    """Return the states of those of these jobs that have a row, by job id."""
    rows = await connection.fetch(
        "SELECT id::text, step, status NOT IN ('pending', 'processing'), updated_at FROM jobs"
        " WHERE id = ANY($1::uuid[])",
        job_ids,
    )
    return {row[0]: JobState(*row[1:]) for row in rows}


#: Deletes finished jobs past their retention, oldest first, and skips those that another status store is deleting. The
#: index jobs_listed has the jobs of one tenant, type and status together, sorted by age, so the cost does not depend on
#: the number of other jobs.
PRUNE: Final = """
WITH RECURSIVE kinds (tenant, type) AS (
    (SELECT tenant, type FROM jobs ORDER BY tenant, type LIMIT 1)
    UNION ALL
    SELECT next.tenant, next.type FROM kinds CROSS JOIN LATERAL (
        SELECT tenant, type FROM jobs WHERE (tenant, type) > (kinds.tenant, kinds.type) ORDER BY tenant, type LIMIT 1
    ) AS next
), old AS (
    SELECT expired.id
    FROM kinds CROSS JOIN unnest(ARRAY['completed', 'failed', 'canceled']) AS terminal (status) CROSS JOIN LATERAL (
        SELECT id FROM jobs
        WHERE tenant = kinds.tenant AND type = kinds.type AND status = terminal.status
          AND created_at < now() - $1::interval AND updated_at < now() - $1::interval
        ORDER BY created_at LIMIT $2
        FOR UPDATE SKIP LOCKED
    ) AS expired
    LIMIT $2
), events AS (
    DELETE FROM job_events USING old WHERE job_id = old.id
)
DELETE FROM jobs USING old WHERE jobs.id = old.id
"""


async def prune(connection: asyncpg.Connection, retention: timedelta, limit: int) -> int:
    """Delete at most `limit` finished jobs older than `retention`, with their history. Returns the number of jobs."""
    status = await connection.execute(PRUNE, retention, limit)
    return int(status.rpartition(" ")[2])
