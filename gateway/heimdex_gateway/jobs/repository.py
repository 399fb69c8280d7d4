"""The gateway's SELECTs, each within a time that leaves room for an answer; they read the status store's views only."""

import asyncio
from datetime import UTC, datetime
from typing import Any, Final, get_args

import asyncpg
import msgspec

from heimdex_contracts import messages
from heimdex_contracts.errors import HeimdexError, UnusableMessage
from heimdex_contracts.history import EventRow
from heimdex_contracts.lifecycle import Snapshot, Status
from heimdex_contracts.messages import AnyJobMessage
from heimdex_contracts.runtime import postgres_session, tcp_keepalive

#: Of the 5 s that an answer may take at most.
TIMEOUT_SECONDS: Final = 2.0
#: Postgres itself ends a statement before we give it up, and says so: where nothing comes back, the link is in doubt.
_STATEMENT_SECONDS: Final = 1.8
_SESSION: Final = postgres_session.setting(
    {
        **postgres_session.COMMON,
        "statement_timeout": postgres_session.milliseconds(_STATEMENT_SECONDS),
        "default_transaction_read_only": "on",
    }
)

#: Where a list begins and ends that nobody bounds.
BEGIN_OF_TIME: Final = datetime.min.replace(tzinfo=UTC)
END_OF_TIME: Final = datetime.max.replace(tzinfo=UTC)
#: Before every job of its moment: no job has this id.
FIRST_ID: Final = "00000000-0000-0000-0000-000000000000"

#: The columns of the view `job_status` but the id: the fields of Snapshot.
_FIELDS: Final = tuple(name for name in Snapshot.__struct_fields__ if name != "job_id")
COLUMNS: Final = ", ".join(_FIELDS)
ROW: Final = f"SELECT {COLUMNS} FROM job_status WHERE id = $1 AND tenant = $2"  # noqa: S608  # our own columns
HISTORY: Final = """
SELECT job_id::text, step, attempt, run, kind, stage, at, ended_stage, ended_attempt, started_at, seconds, error,
       delay_seconds
FROM job_history WHERE job_id = $1 ORDER BY step, attempt
"""
#: What the queries here need: columns, and the index without which a list of many jobs takes too long to be answered.
READY: Final = """
SELECT (SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('jobs_listed')),
       (SELECT tenant FROM job_status LIMIT 0), (SELECT message FROM job_messages LIMIT 0),
       (SELECT delay_seconds FROM job_history LIMIT 0)
"""
OLD_SCHEMA: Final = (
    "the schema is not what this gateway needs: the status store of the same version makes it so, "
    "and logs schema_migrated when it has"
)

#: The types of which this tenant ($1) has jobs: one look into the index for each.
KINDS: Final = """
RECURSIVE kinds (type) AS (
    (SELECT type FROM job_status WHERE tenant = $1 ORDER BY type LIMIT 1)
    UNION ALL
    SELECT next.type FROM kinds CROSS JOIN LATERAL (
        SELECT type FROM job_status WHERE tenant = $1 AND type > kinds.type ORDER BY type LIMIT 1
    ) AS next
)"""
ONE_KIND: Final = "kinds (type) AS (SELECT $6::text)"
#: A page is merged from the places of each type and status, where the index has them in order: no filter can make it
#: scan what it leaves out, and the planner has nothing to choose from. The number of jobs is written in, and is no
#: argument, since a plan for any number at all would be one for a tenth of the table.
LIST: Final = """
WITH {kinds}, page AS (
    SELECT place.id, place.created_at AS at
    FROM kinds CROSS JOIN unnest($2::text[]) AS wanted (status) CROSS JOIN LATERAL (
        SELECT id, created_at FROM job_status
        WHERE tenant = $1 AND type = kinds.type AND status = wanted.status
          AND created_at > $3 AND (created_at, id) < ($4, $5::uuid)
        ORDER BY created_at DESC, id DESC LIMIT {limit}
    ) AS place
    ORDER BY place.created_at DESC, place.id DESC LIMIT {limit}
)
SELECT {columns}, page.id::text FROM page JOIN job_status ON job_status.id = page.id ORDER BY at DESC, page.id DESC
"""


STATUSES: Final[tuple[str, ...]] = get_args(Status)


class Cursor(msgspec.Struct, frozen=True):
    """A job's place in the list: what a cursor says, which is nobody's business but ours."""

    created_at: datetime
    id: str


class JobQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What to list. The times exclude their moment itself."""

    status: str | None
    type: str | None
    created_after: datetime | None
    created_before: datetime | None
    limit: int
    cursor: Cursor | None


class Installation(msgspec.Struct, frozen=True):
    """Which installation the database is of, and the database's own id; None: not known (yet)."""

    id: str | None
    database: str | None


class DatabaseUnavailable(HeimdexError):
    """Postgres could not be asked; nothing is known of the row."""


class Database:
    """A pool that connects when it is asked: it may be made while Postgres is away."""

    def __init__(self, url: str) -> None:
        self._pool: asyncpg.Pool = asyncpg.create_pool(
            url,
            min_size=0,
            max_size=10,
            timeout=TIMEOUT_SECONDS,
            command_timeout=TIMEOUT_SECONDS,
            max_inactive_connection_lifetime=60,
            server_settings={"application_name": "heimdex-gateway"},
            init=_begin_session,
            reset=_keep_session,
        )

    async def job(self, job_id: str, tenant: str) -> Snapshot | None:
        """The row, or None where this tenant has no such job. Raises DatabaseUnavailable, after TIMEOUT_SECONDS."""
        row = await self._ask(ROW, job_id, tenant)
        if row is None:
            return None
        return _snapshot(row, job_id)

    async def last_message(self, job_id: str) -> AnyJobMessage | None:
        """The message that ended a job, as its row keeps it; None where it keeps none. Raises as above."""
        row = await self._ask("SELECT message FROM job_messages WHERE id = $1", job_id)
        if row is None or row[0] is None:
            return None
        try:
            return messages.decode_stored(row[0].encode())
        except UnusableMessage:
            return None

    async def jobs(self, wanted: JobQuery, tenant: str) -> list[Snapshot]:
        """One page of this tenant's, newest first, and one more where there is another page. Raises as above."""
        before, place = wanted.created_before, wanted.cursor
        if before is not None and (place is None or before <= place.created_at):
            end = (before, FIRST_ID)
        else:
            end = (place.created_at, place.id) if place is not None else (END_OF_TIME, FIRST_ID)
        # Only our own words and a number are put together here; every value is an argument.
        query = LIST.format(kinds=ONE_KIND if wanted.type else KINDS, limit=wanted.limit + 1, columns=COLUMNS)
        statuses = [wanted.status] if wanted.status else STATUSES
        arguments = [
            tenant,
            statuses,
            wanted.created_after or BEGIN_OF_TIME,
            *end,
            *([wanted.type] if wanted.type else []),
        ]
        return [_snapshot(row, row[len(_FIELDS)]) for row in await self._ask(query, *arguments, many=True)]

    async def history(self, job_id: str) -> list[EventRow]:
        """The job's history as far as it is recorded, in order. Raises as above."""
        return [EventRow(*row) for row in await self._ask(HISTORY, job_id, many=True)]

    async def installation(self) -> Installation:
        """What the database says; nothing where the status store has not made its view yet. Raises as above."""
        try:
            row = await self._ask("SELECT id, database FROM job_installation")
        except DatabaseUnavailable as error:
            if isinstance(error.__cause__, asyncpg.UndefinedTableError):
                return Installation(None, None)
            raise
        return Installation(None, None) if row is None else Installation(row[0], row[1])

    async def check(self) -> None:
        """Raises DatabaseUnavailable unless the schema is there, as far as this version needs it."""
        (complete, *_) = await self._ask(READY)
        if not complete:
            raise DatabaseUnavailable(OLD_SCHEMA)

    async def close(self) -> None:
        """Drop the connections."""
        if self._pool._initialized:  # it is not while Postgres was never asked
            self._pool.terminate()

    async def _ask(self, query: str, *arguments: Any, many: bool = False) -> Any:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                if not self._pool._initialized:
                    await self._pool
                async with self._pool.acquire() as connection:
                    try:
                        return await (connection.fetch if many else connection.fetchrow)(query, *arguments)
                    except (TimeoutError, asyncio.CancelledError):
                        # To give it back in order is to wait for its answer once more.
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
        """What happened to one connection may have happened to all: no other request must find that out by waiting.

        Those in use show it themselves. (`expire_connections` would log of each that it could not be closed in order.)
        """
        for holder in self._pool._holders:
            if holder.is_idle():
                holder.terminate()


async def _begin_session(connection: asyncpg.Connection) -> None:
    tcp_keepalive.notice_death(connection._transport.get_extra_info("socket"))
    try:
        await connection.execute(_SESSION)
    except BaseException:
        connection.terminate()  # the pool would wait for it to close in order
        raise


async def _keep_session(_: asyncpg.Connection) -> None:
    """Nothing to undo: a request changes no setting, takes no lock, opens no cursor."""


def _snapshot(row: Any, job_id: str) -> Snapshot:
    fields = dict(zip(_FIELDS, row, strict=False))
    if fields["result"] is not None:
        fields["result"] = msgspec.json.decode(fields["result"])
    return Snapshot(job_id=job_id, **fields)
