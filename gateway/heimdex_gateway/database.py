"""The gateway's SELECTs, each within a time that leaves room for an answer; they read the status store's views only."""

import asyncio
from typing import Any, Final

import asyncpg
import msgspec

from heimdex_contracts import messages
from heimdex_contracts.errors import HeimdexError, UnusableMessage
from heimdex_contracts.history import EventRow
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import AnyJobMessage
from heimdex_gateway.listing import Wanted

#: Of the 5 s that an answer may take at most.
TIMEOUT_SECONDS: Final = 2.0

COLUMNS: Final = "type, run, step, attempt, progress, status, stage, result, error, created_at, updated_at"
ROW: Final = f"SELECT {COLUMNS} FROM job_status WHERE id = $1"  # noqa: S608  # our own columns
HISTORY: Final = """
SELECT job_id::text, step, attempt, run, kind, stage, at, ended_stage, ended_attempt, started_at, seconds, error,
       delay_seconds
FROM job_history WHERE job_id = $1 ORDER BY step, attempt
"""


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
            server_settings={"application_name": "heimdex-gateway", "default_transaction_read_only": "on"},
        )

    async def job(self, job_id: str) -> Snapshot | None:
        """The row, or None. Raises DatabaseUnavailable, after TIMEOUT_SECONDS at most."""
        row = await self._ask(ROW, job_id)
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

    async def jobs(self, wanted: Wanted) -> list[Snapshot]:
        """One page, newest first, and one job more where there is another page. Raises as above."""
        conditions: list[str] = []
        arguments: list[Any] = []
        for condition, value in (
            ("status = {}", wanted.status),
            ("type = {}", wanted.type),
            ("created_at > {}", wanted.created_after),
            ("created_at < {}", wanted.created_before),
        ):
            if value is not None:
                arguments.append(value)
                conditions.append(condition.format(f"${len(arguments)}"))
        if wanted.cursor is not None:
            arguments += [wanted.cursor.created_at, wanted.cursor.id]
            conditions.append(f"(created_at, id) < (${len(arguments) - 1}, ${len(arguments)}::uuid)")
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        arguments.append(wanted.limit + 1)
        # Only our own conditions are put together here; every value is an argument.
        query = f"SELECT {COLUMNS}, id::text FROM job_status {where} ORDER BY created_at DESC, id DESC LIMIT ${len(arguments)}"  # noqa: S608, E501
        return [_snapshot(row, row[11]) for row in await self._ask(query, *arguments, many=True)]

    async def history(self, job_id: str) -> list[EventRow]:
        """The job's history as far as it is recorded, in order. Raises as above."""
        return [EventRow(*row) for row in await self._ask(HISTORY, job_id, many=True)]

    async def check(self) -> None:
        """Raises DatabaseUnavailable unless the view can be read."""
        await self._ask("SELECT FROM job_status LIMIT 0")

    async def close(self) -> None:
        """Drop the connections."""
        if self._pool._initialized:  # it is not while Postgres was never asked
            self._pool.terminate()

    async def _ask(self, query: str, *arguments: Any, many: bool = False) -> Any:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                if not self._pool._initialized:
                    await self._pool
                if many:
                    return await self._pool.fetch(query, *arguments)
                return await self._pool.fetchrow(query, *arguments)
        except (
            OSError,
            TimeoutError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
        ) as error:
            raise DatabaseUnavailable(f"{type(error).__name__}: {error}".rstrip(": ")) from error


def _snapshot(row: Any, job_id: str) -> Snapshot:
    return Snapshot(
        job_id=job_id,
        type=row[0],
        run=row[1],
        step=row[2],
        attempt=row[3],
        progress=row[4],
        status=row[5],
        stage=row[6],
        result=None if row[7] is None else msgspec.json.decode(row[7]),
        error=row[8],
        created_at=row[9],
        updated_at=row[10],
    )
