"""Every write to Postgres, each a named statement with a function."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from types import UnionType
from typing import Any, Final, get_args, get_origin

import asyncpg
import msgspec

from heimdex_contracts import subjects
from heimdex_contracts.history import EventRow
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import End
from heimdex_status_store.projection import JobRow


def _type_in_postgres(kind: Any) -> str:
    """The column type of a field of this Python type, without None."""
    kinds = [one for one in get_args(kind) if one is not type(None)] if isinstance(kind, UnionType) else [kind]
    (kind,) = kinds
    return {str: "text", int: "int", float: "float8", datetime: "timestamptz", dict: "json"}.get(
        get_origin(kind) or kind, "text"
    )


def _columns(row: type[msgspec.Struct], **of_their_own: tuple[str, str]) -> dict[str, str]:
    """Each column's type, in the order of the fields. of_their_own: name and type of a column, by its field."""
    return dict(
        of_their_own.get(field.name, (field.name, _type_in_postgres(field.type)))
        for field in msgspec.structs.fields(row)
    )


def _arrays(columns: dict[str, str], first: int = 1) -> str:
    """The arguments of `unnest`, from `$first` on."""
    return ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(columns.values(), first))


#: The columns of `jobs` are the fields of Snapshot, and the message that is kept.
JOB_COLUMNS: Final = _columns(Snapshot, job_id=("id", "uuid")) | {"message": "json"}
#: And what only this statement needs.
_INCOMING: Final = JOB_COLUMNS | {"attempt_only": "bool"}
#: The columns of `job_events` are the fields of EventRow.
EVENT_COLUMNS: Final = _columns(EventRow, job_id=("job_id", "uuid"))
_JOBS: Final = ", ".join(JOB_COLUMNS)
_EVENTS: Final = ", ".join(EVENT_COLUMNS)

#: Raise each job's row to the highest rank seen, and add to the history, in one statement: one round trip, one commit.
#: pending -> processing -> completed | failed | canceled; a lower or an equal rank changes nothing, nor a message that
#: says that a run went on after its end.
RECORD: Final = f"""
WITH incoming AS (
    SELECT * FROM unnest({_arrays(_INCOMING)}) AS new ({", ".join(_INCOMING)})
), early AS (
    -- A tick or a failed attempt may only raise the row of the message that it belongs to: what was told of a stage's
    -- attempts then implies that the hand-over to this stage is recorded, and kept in case the stream should lose it.
    -- One that comes before it must come again.
    SELECT id FROM incoming
    WHERE attempt_only AND NOT EXISTS (SELECT FROM jobs WHERE jobs.id = incoming.id AND jobs.step >= incoming.step)
), history AS (
    INSERT INTO job_events ({_EVENTS})
    SELECT * FROM unnest({_arrays(EVENT_COLUMNS, len(_INCOMING) + 1)})
    ON CONFLICT DO NOTHING
), raised AS (
    INSERT INTO jobs AS old ({_JOBS})
    SELECT {_JOBS}
    FROM incoming
    WHERE NOT EXISTS (SELECT FROM early WHERE early.id = incoming.id)
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
        END
    WHERE (EXCLUDED.step, EXCLUDED.attempt, EXCLUDED.progress) > (old.step, old.attempt, old.progress)
           -- Nothing but the next run follows an end.
           AND (EXCLUDED.run > old.run OR old.status IN ('pending', 'processing'))
        -- A tick that only tells that the stage is still at it.
        OR (EXCLUDED.step, EXCLUDED.attempt, EXCLUDED.progress) = (old.step, old.attempt, old.progress)
           AND EXCLUDED.updated_at > old.updated_at
           AND EXCLUDED.status = 'processing' AND old.status = 'processing'
    RETURNING 1
)
SELECT (SELECT count(*) FROM raised), ARRAY(SELECT id::text FROM early)
"""  # noqa: S608  # our own columns


class WriteResult(msgspec.Struct, frozen=True):
    """How many jobs' rows rose (0 for a pure replay), and the jobs of whom an attempt was told before its hand-over.

    ahead: job id and step of each attempt that has to come by itself (`rows.ahead`).
    strays: job id and step of each end, of those that were asked about, that its job did not have.
    """

    raised: int
    early: frozenset[str]
    ahead: frozenset[tuple[str, int]] = frozenset()
    strays: frozenset[tuple[str, int]] = frozenset()


async def record(connection: asyncpg.Connection, jobs: Sequence[JobRow], events: Sequence[EventRow]) -> WriteResult:
    """Write one batch; `jobs` sorted by id, one row a job."""
    raised, early = await connection.fetchrow(RECORD, *_job_columns(jobs), *_event_columns(events))
    return WriteResult(raised, frozenset(early))


#: An end that came after another end of the same run was recorded: of a cancel that was too late, or a late retry.
STRAYS: Final = """
SELECT told.id::text, told.step
FROM unnest($1::uuid[], $2::int[], $3::int[]) AS told (id, run, step)
JOIN jobs ON jobs.id = told.id AND jobs.run = told.run AND jobs.step <> told.step
"""


async def strays(connection: asyncpg.Connection, ends: Sequence[End]) -> frozenset[tuple[str, int]]:
    """Those of these ends, all of them recorded, that are not how their runs ended."""
    columns = [[end.job_id for end in ends], [end.run for end in ends], [end.step for end in ends]]
    return frozenset((row[0], row[1]) for row in await connection.fetch(STRAYS, *columns))


def _job_columns(rows: Sequence[JobRow]) -> list[list[Any]]:
    columns = [[getattr(row.job, name) for row in rows] for name in Snapshot.__struct_fields__]
    results = Snapshot.__struct_fields__.index("result")
    columns[results] = [None if value is None else msgspec.json.encode(value).decode() for value in columns[results]]
    return [
        *columns,
        [None if row.message is None else row.message.decode() for row in rows],
        [row.attempt_only for row in rows],
    ]


def _event_columns(rows: Sequence[EventRow]) -> list[list[Any]]:
    return [[getattr(row, name) for row in rows] for name in EventRow.__struct_fields__]


#: How tries to call back went. A job that was forgotten meanwhile gets no history any more.
RECORD_CALLBACKS: Final = f"""
INSERT INTO job_events ({_EVENTS})
SELECT * FROM unnest({_arrays(EVENT_COLUMNS)}) AS new ({_EVENTS})
WHERE EXISTS (SELECT FROM jobs WHERE jobs.id = new.job_id)
ON CONFLICT DO NOTHING
"""  # noqa: S608  # our own columns


async def record_callbacks(connection: asyncpg.Connection, events: Sequence[EventRow]) -> None:
    """Add to the histories of their jobs; nothing else of a job changes by a callback."""
    await connection.execute(RECORD_CALLBACKS, *_event_columns(events))


#: The ended jobs whose callback has had no last word, with the message that ended each, and the tries so far.
OWED: Final = """
SELECT id::text, message::text,
       COALESCE((SELECT max(attempt) FROM job_events WHERE job_id = jobs.id AND job_events.step = jobs.step), 0)
FROM jobs
WHERE status IN ('completed', 'failed', 'canceled') AND message->>'callback_url' IS NOT NULL
  AND ($1::uuid IS NULL OR id > $1)
  AND NOT EXISTS (SELECT FROM job_events WHERE job_id = jobs.id AND job_events.step = jobs.step
                  AND kind IN ('callback_delivered', 'callback_given_up'))
ORDER BY jobs.id LIMIT $2
"""


async def owed(connection: asyncpg.Connection, after: str | None, limit: int) -> list[tuple[str, str, int]]:
    """The next page after this job id (None: the first): job id, message as JSON, tries. Reads the whole table."""
    return [tuple(row) for row in await connection.fetch(OWED, after, limit)]


class Unfinished(msgspec.Struct, frozen=True):
    """A job that has not ended, as its row says. `message`: its newest, as JSON; `subject`: where that belongs.

    in_back_off: the delay before its next attempt is not over, by the clock of the worker that began it.
    """

    job_id: str
    step: int
    progress: int
    stage: str
    started: bool
    updated_at: datetime
    message: str
    failed_attempts: int
    in_back_off: bool

    @property
    def subject(self) -> str:
        """`heimdex.jobs.<stage>.<job_id>`."""
        return subjects.job_subject(self.stage, self.job_id)


_UNFINISHED: Final = """
SELECT id::text, step, progress, message->>'stage', status = 'processing', updated_at, message::text,
       COALESCE((SELECT max(attempt) FROM job_events WHERE job_id = jobs.id AND job_events.step = jobs.step), 0),
       EXISTS (SELECT FROM job_events WHERE job_id = jobs.id AND job_events.step = jobs.step
               AND at + delay_seconds * interval '1 second' > now())
FROM jobs
WHERE status IN ('pending', 'processing') AND message IS NOT NULL
"""

#: A row written further than this in the future, by our clock, has another clock's time: its age is not known.
AHEAD: Final = timedelta(seconds=5)

#: The unfinished jobs in the order of their ids, a page at a time.
UNFINISHED: Final = (
    _UNFINISHED
    + """
AND ($1::uuid IS NULL OR id > $1)
AND ($2::interval IS NULL OR updated_at <= now() - $2 OR updated_at > now() + $3::interval)
ORDER BY jobs.id LIMIT $4
"""
)


async def unfinished(
    connection: asyncpg.Connection, after: str | None, rest: timedelta | None, limit: int
) -> list[Unfinished]:
    """The next page after this job id (None: the first) of the rows untouched for at least `rest` (None: of all)."""
    return [Unfinished(*row) for row in await connection.fetch(UNFINISHED, after, rest, AHEAD, limit)]


async def unfinished_row(connection: asyncpg.Connection, job_id: str) -> Unfinished | None:
    """One job's row, or None where it has ended."""
    row = await connection.fetchrow(_UNFINISHED + "AND id = $1", job_id)
    return None if row is None else Unfinished(*row)


class StreamSeen(msgspec.Struct, frozen=True):
    """When the stream that these rows were recorded from was created, and each durable consumer, by its name."""

    created: str
    durables: dict[str, str]


async def stream_seen(connection: asyncpg.Connection) -> StreamSeen | None:
    """None: this database has seen no stream."""
    row = await connection.fetchrow("SELECT created, durables FROM stream_seen")
    return None if row is None else StreamSeen(row[0], msgspec.json.decode(row[1]) if row[1] else {})


async def has_no_jobs(connection: asyncpg.Connection) -> bool:
    """Whether there is no job at all."""
    return not await connection.fetchval("SELECT EXISTS (SELECT FROM jobs)")


async def mark_stream_seen(connection: asyncpg.Connection, seen: StreamSeen) -> None:
    """The rows and this stream agree."""
    await connection.execute(
        "INSERT INTO stream_seen (created, durables) VALUES ($1, $2)"
        " ON CONFLICT (one) DO UPDATE SET created = EXCLUDED.created, durables = EXCLUDED.durables",
        seen.created,
        msgspec.json.encode(seen.durables).decode(),
    )


#: Ended jobs past their retention, oldest first; another store's batch is stepped over. Each tenant's jobs of one type
#: and status lie together in the index jobs_listed, by age: found there, however many others there are.
PRUNE: Final = """
WITH RECURSIVE kinds (tenant, type) AS (
    (SELECT tenant, type FROM jobs ORDER BY tenant, type LIMIT 1)
    UNION ALL
    SELECT next.tenant, next.type FROM kinds CROSS JOIN LATERAL (
        SELECT tenant, type FROM jobs WHERE (tenant, type) > (kinds.tenant, kinds.type) ORDER BY tenant, type LIMIT 1
    ) AS next
), old AS (
    SELECT found.id
    FROM kinds CROSS JOIN unnest(ARRAY['completed', 'failed', 'canceled']) AS ended (status) CROSS JOIN LATERAL (
        SELECT id FROM jobs
        WHERE tenant = kinds.tenant AND type = kinds.type AND status = ended.status
          AND created_at < now() - $1::interval AND updated_at < now() - $1::interval
        ORDER BY created_at LIMIT $2
        FOR UPDATE SKIP LOCKED
    ) AS found
    LIMIT $2
), events AS (
    DELETE FROM job_events USING old WHERE job_id = old.id
)
DELETE FROM jobs USING old WHERE jobs.id = old.id
"""


async def prune(connection: asyncpg.Connection, retention: timedelta, limit: int) -> int:
    """Delete at most `limit` jobs with their history. Returns how many."""
    status = await connection.execute(PRUNE, retention, limit)
    return int(status.rpartition(" ")[2])
