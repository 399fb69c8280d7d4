"""The gateway's queries. They read only the status store's views, each within a time that a response can wait for."""

import asyncio
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Final, get_args

import asyncpg
import msgspec

from heimdex_contracts import messages, patches
from heimdex_contracts.errors import HeimdexError, UnusableMessage
from heimdex_contracts.history import EventRow
from heimdex_contracts.lifecycle import Snapshot, StageOutput, Status
from heimdex_contracts.messages import NOTHING, AnyJobMessage, StageRun
from heimdex_contracts.runtime import postgres_session, tcp_keepalive

#: The time limit of a query; a response may take 5 s at most.
TIMEOUT_SECONDS: Final = 2.0
#: Shorter than TIMEOUT_SECONDS: Postgres cancels a slow statement and reports it before the client gives up. If nothing
#: arrives in time, the connection itself is in doubt.
_STATEMENT_SECONDS: Final = 1.8
_SESSION: Final = postgres_session.setting(
    {
        **postgres_session.COMMON,
        "statement_timeout": postgres_session.milliseconds(_STATEMENT_SECONDS),
        "default_transaction_read_only": "on",
    }
)

#: The bounds of a list without `created_after` or `created_before`.
BEGIN_OF_TIME: Final = datetime.min.replace(tzinfo=UTC)
END_OF_TIME: Final = datetime.max.replace(tzinfo=UTC)
#: Sorts before every job created at the same time; no job has this id.
FIRST_ID: Final = "00000000-0000-0000-0000-000000000000"

#: The columns of the view `job_status` except the id. They are the fields of Snapshot.
_FIELDS: Final = tuple(name for name in Snapshot.__struct_fields__ if name not in {"job_id", "params", "finished"})
COLUMNS: Final = ", ".join(_FIELDS)
ROW: Final = f"SELECT {COLUMNS} FROM job_status WHERE id = $1 AND tenant = $2"  # noqa: S608  # our own columns
#: What `include` reads, by its words: columns of the view `job_messages`.
_INCLUDED: Final = {"params": ("params",), "outputs": ("outputs", "message")}
#: As ROW, with further columns, so that all of it is of one state.
ROW_AND: Final = """
SELECT {columns} FROM job_status JOIN job_messages ON job_messages.id = job_status.id
WHERE job_status.id = $1 AND tenant = $2
"""
#: The columns of the view `job_history` are the fields of EventRow.
_EVENT_COLUMNS: Final = ", ".join("job_id::text" if name == "job_id" else name for name in EventRow.__struct_fields__)
HISTORY: Final = f"SELECT {_EVENT_COLUMNS} FROM job_history WHERE job_id = $1 ORDER BY step, attempt"  # noqa: S608  # our own columns
#: Checks what the queries need: the columns, and the index without which listing many jobs takes too long.
READY: Final = f"""
SELECT (SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('jobs_listed')),
       EXISTS (SELECT {COLUMNS} FROM job_status LIMIT 0),
       EXISTS (SELECT message, params, outputs FROM job_messages LIMIT 0),
       EXISTS (SELECT {_EVENT_COLUMNS} FROM job_history LIMIT 0)
"""  # noqa: S608  # our own columns
OLD_SCHEMA: Final = (
    "the schema is older than this gateway requires: the status store of the same version migrates it, "
    "and then logs schema_migrated"
)

#: The types of which this tenant ($1) has jobs, with one index lookup per type.
KINDS: Final = """
RECURSIVE kinds (type) AS (
    (SELECT type FROM job_status WHERE tenant = $1 ORDER BY type LIMIT 1)
    UNION ALL
    SELECT next.type FROM kinds CROSS JOIN LATERAL (
        SELECT type FROM job_status WHERE tenant = $1 AND type > kinds.type ORDER BY type LIMIT 1
    ) AS next
)"""
ONE_KIND: Final = "kinds (type) AS (SELECT $6::text)"
#: A page of jobs. For each type and status the index has the jobs in order, and a page is merged from these ranges. So
#: no filter makes the query scan rows that it excludes, and there is only one sensible plan. The limit is part of the
#: text and is not an argument, because a generic plan for an unknown limit assumes a tenth of the table.
_PAGE: Final = """
WITH {kinds}, page AS (
    SELECT place.id, place.created_at AS at
    FROM kinds CROSS JOIN unnest($2::text[]) AS filter_status (status) CROSS JOIN LATERAL (
        SELECT id, created_at FROM job_status
        WHERE tenant = $1 AND type = kinds.type AND status = filter_status.status
          AND created_at > $3 AND (created_at, id) < ($4, $5::uuid)
        ORDER BY created_at DESC, id DESC LIMIT {limit}
    ) AS place
    ORDER BY place.created_at DESC, place.id DESC LIMIT {limit}
)"""
_LISTED: Final = """
SELECT {columns}, page.id::text FROM page JOIN job_status ON job_status.id = page.id ORDER BY at DESC, page.id DESC
"""
#: The page with further columns. It ends where all of them together are too large, but has one job at least. The size
#: of a large value is known without reading it.
_LISTED_AND: Final = """,
sized AS (
    SELECT page.id, at, row_number() OVER newest_first AS position, sum({sizes}) OVER newest_first AS size
    FROM page JOIN job_status ON job_status.id = page.id JOIN job_messages ON job_messages.id = page.id
    WINDOW newest_first AS (ORDER BY at DESC, page.id DESC)
)
SELECT {columns}, sized.id::text, (SELECT count(*) FROM page)
FROM sized JOIN job_status ON job_status.id = sized.id JOIN job_messages ON job_messages.id = sized.id
WHERE position = 1 OR size <= {most}
ORDER BY at DESC, sized.id DESC
"""
LIST: Final = f"{_PAGE}{_LISTED}"
LIST_AND: Final = f"{_PAGE}{_LISTED_AND}"
#: The most that a page has, but one job at least.
MAX_PAGE_BYTES: Final = 8 * 1024 * 1024
#: What a job object has at most beside its result, its error, and what `include` adds to them.
_OBJECT_BYTES: Final = 512

HAS_JOBS: Final = "SELECT EXISTS (SELECT FROM job_status WHERE tenant = $1 AND type = $2)"

STATUSES: Final[tuple[str, ...]] = get_args(Status)


class Cursor(msgspec.Struct, frozen=True):
    """A job's sort key in the list. To API clients the cursor is opaque."""

    created_at: datetime
    id: str


class JobQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Filters of a list of jobs. Both times are exclusive."""

    status: str | None
    type: str | None
    created_after: datetime | None
    created_before: datetime | None
    limit: int
    cursor: Cursor | None


class JobPage(msgspec.Struct, frozen=True):
    """A page of jobs. more: whether there is another page."""

    jobs: list[Snapshot]
    more: bool


class Installation(msgspec.Struct, frozen=True):
    """The installation that the database belongs to, and the database's own id; None if not known (yet)."""

    id: str | None
    database: str | None


class KeptMessage(msgspec.Struct, frozen=True):
    """The newest message of a job, and its JSON, which may have fields of a newer release."""

    message: AnyJobMessage
    payload: bytes


class DatabaseUnavailable(HeimdexError):
    """Postgres could not be queried, so nothing is known about the row."""


class Database:
    """A connection pool that connects on first use, so it can be created while Postgres is down.

    timeout_seconds: as TIMEOUT_SECONDS.
    """

    def __init__(self, url: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._timeout_seconds = timeout_seconds
        self._started = False
        self._pool = asyncpg.create_pool(
            url,
            min_size=0,
            max_size=10,
            timeout=timeout_seconds,
            command_timeout=timeout_seconds,
            max_inactive_connection_lifetime=60,
            server_settings={"application_name": "heimdex-gateway"},
            init=_begin_session,
            reset=_keep_session,
        )

    async def job(self, job_id: str, tenant: str, include: Collection[str] = ()) -> Snapshot | None:
        """Return the job's row, or None if this tenant has no such job.

        include: `params`, `outputs`; without them no column of theirs is read, and the Snapshot lacks them. Raises
        DatabaseUnavailable, within `timeout_seconds`.
        """
        query = ROW_AND.format(columns=_columns(include)) if include else ROW
        rows = await self._ask(query, job_id, tenant)
        return _snapshot(rows[0], job_id, include) if rows else None

    async def last_message(self, job_id: str) -> KeptMessage | None:
        """Return the newest message of a job as stored in its row, or None. Raises DatabaseUnavailable."""
        rows = await self._ask("SELECT message, params FROM job_messages WHERE id = $1", job_id)
        if not rows or rows[0][0] is None:
            return None
        try:
            payload = patches.whole(*rows[0])
            return KeptMessage(messages.decode_stored(payload), payload)
        except UnusableMessage:
            return None

    async def jobs(self, filters: JobQuery, tenant: str, include: Collection[str] = ()) -> JobPage:
        """Return a page of this tenant's jobs, newest first: at most `limit`, and MAX_PAGE_BYTES of job objects.

        include: as in `job`. Raises DatabaseUnavailable.
        """
        before, cursor = filters.created_before, filters.cursor
        if before is not None and (cursor is None or before <= cursor.created_at):
            end = (before, FIRST_ID)
        else:
            end = (cursor.created_at, cursor.id) if cursor is not None else (END_OF_TIME, FIRST_ID)
        # Only constants and a number are formatted into the query; every value is an argument.
        query = (LIST_AND if include else LIST).format(
            kinds=ONE_KIND if filters.type else KINDS,
            limit=filters.limit + 1,
            columns=_columns(include),
            sizes=_sizes(include),
            most=MAX_PAGE_BYTES,
        )
        statuses = [filters.status] if filters.status else STATUSES
        arguments = [
            tenant,
            statuses,
            filters.created_after or BEGIN_OF_TIME,
            *end,
            *([filters.type] if filters.type else []),
        ]
        rows = await self._ask(query, *arguments)
        matching = rows[0]["count"] if include and rows else len(rows)
        rows = rows[: filters.limit] if include else _within(rows[: filters.limit])
        return JobPage([_snapshot(row, row["id"], include) for row in rows], matching > len(rows))

    async def has_jobs(self, job_type: str, tenant: str) -> bool:
        """Return whether this tenant has jobs of this type. Raises DatabaseUnavailable."""
        rows = await self._ask(HAS_JOBS, tenant, job_type)
        return bool(rows[0][0])

    async def history(self, job_id: str) -> list[EventRow]:
        """Return the recorded part of the job's history, in order. Raises DatabaseUnavailable."""
        return [EventRow(*row) for row in await self._ask(HISTORY, job_id)]

    async def installation(self) -> Installation:
        """Return the installation that the database records, or one without ids if the view does not exist yet.

        Raises DatabaseUnavailable.
        """
        try:
            rows = await self._ask("SELECT id, database FROM job_installation")
        except DatabaseUnavailable as error:
            if isinstance(error.__cause__, asyncpg.UndefinedTableError):
                return Installation(None, None)
            raise
        return Installation(*rows[0]) if rows else Installation(None, None)

    async def check(self) -> None:
        """Raises DatabaseUnavailable unless the schema has everything that this version requires."""
        ((complete, *_),) = await self._ask(READY)
        if not complete:
            raise DatabaseUnavailable(OLD_SCHEMA)

    async def close(self) -> None:
        """Close all connections at once, without waiting for queries in progress."""
        if self._started:
            self._pool.terminate()

    async def _ask(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                if not self._started:
                    await self._pool
                    self._started = True
                async with self._pool.acquire() as connection:
                    try:
                        return await connection.fetch(query, *arguments)
                    except (TimeoutError, asyncio.CancelledError):
                        # Releasing it to the pool would wait for its response again.
                        connection.terminate()
                        raise
        except TimeoutError as error:
            self._doubt_idle()
            raise DatabaseUnavailable("Postgres did not answer in time") from error
        except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.InvalidSchemaNameError) as error:
            raise DatabaseUnavailable(OLD_SCHEMA) from error
        except (
            OSError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
        ) as error:
            raise DatabaseUnavailable(f"{type(error).__name__}: {error}".rstrip(": ")) from error

    def _doubt_idle(self) -> None:
        """Terminate all idle connections after a time-out on one.

        The others may be broken in the same way, and no other request should have to wait for its own time-out to find
        out. Connections in use fail by themselves. (`expire_connections` is not used: it would log an unclean
        close for each.)
        """
        for holder in self._pool._holders:  # type: ignore[attr-defined]  # private
            if holder.is_idle():
                holder.terminate()


async def _begin_session(connection: asyncpg.Connection) -> None:
    transport: asyncio.Transport = connection._transport  # type: ignore[attr-defined]  # private
    tcp_keepalive.notice_death(transport.get_extra_info("socket"))
    try:
        await connection.execute(_SESSION)
    except BaseException:
        connection.terminate()  # the pool would wait for an orderly close
        raise


async def _keep_session(_: asyncpg.Connection) -> None:
    """Reset nothing when a connection is released: a query changes no setting, takes no lock, opens no cursor."""


def _columns(include: Collection[str]) -> str:
    return ", ".join((*_FIELDS, *(name for word in include for name in _INCLUDED[word])))


def _sizes(include: Collection[str]) -> str:
    """The SQL of the size in bytes of a job object with these columns, or a little more."""
    columns = ["result", *(name for word in include for name in _INCLUDED[word])]
    if "outputs" in include:
        columns.append("result")  # the last stage's output is in both
    sizes = (f"COALESCE(pg_column_size({name}), 0)" for name in columns)
    # An error may be stored compressed.
    return " + ".join((str(_OBJECT_BYTES), "COALESCE(octet_length(error), 0)", *sizes))


def _within(rows: list[asyncpg.Record]) -> list[asyncpg.Record]:
    """Return the first of these rows, as many as have MAX_PAGE_BYTES together, but one at least."""
    size = 0
    for number, row in enumerate(rows):
        size += _OBJECT_BYTES + sum(len(text.encode()) for text in (row["result"], row["error"]) if text)
        if size > MAX_PAGE_BYTES and number > 0:
            return rows[:number]
    return rows


def _snapshot(row: asyncpg.Record, job_id: str, include: Collection[str] = ()) -> Snapshot:
    fields = dict(zip(_FIELDS, row, strict=False))
    if fields["result"] is not None:
        fields["result"] = msgspec.Raw(fields["result"].encode())
    if "params" in include and row["params"] is not None:
        fields["params"] = msgspec.Raw(row["params"].encode())
    if "outputs" in include:
        fields["finished"] = _finished(row)
    return Snapshot(job_id=job_id, **fields)


class _Stages(msgspec.Struct):
    """The part of a message that has the outputs."""

    run: int = 1
    finished: tuple[StageRun, ...] = ()


class _Result(msgspec.Struct):
    stages_completed: tuple[str, ...] = ()


_stages: Final = msgspec.json.Decoder(_Stages)
_result: Final = msgspec.json.Decoder(_Result)
_outputs: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _finished(row: asyncpg.Record) -> tuple[StageRun | StageOutput, ...] | None:
    """Return the stages that have succeeded, with their outputs; None if the row does not have them (yet)."""
    if row["status"] == "completed":
        if row["result"] is None:
            return None
        # Its message is not kept. The last stage's output is in the result.
        outputs = _outputs.decode(row["outputs"] or "{}")
        stages = _result.decode(row["result"]).stages_completed
        return tuple(StageOutput(stage, outputs.get(stage, NOTHING)) for stage in stages)
    if row["message"] is None:
        return None
    kept = _stages.decode(row["message"])
    # The first tick of a run may be recorded before the run's first message.
    return kept.finished if kept.run == row["run"] else None
