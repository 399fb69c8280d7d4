"""The gateway's one SELECT: a job's row in the view `job_status`, within a time that leaves room for an answer."""

import asyncio
from typing import Any, Final

import asyncpg
import msgspec

from heimdex_contracts import messages
from heimdex_contracts.errors import HeimdexError, UnusableMessage
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import AnyJobMessage

#: Of the 5 s that an answer may take at most.
TIMEOUT_SECONDS: Final = 2.0

ROW: Final = """
SELECT type, run, step, attempt, progress, status, stage, result, error, created_at, updated_at
FROM job_status WHERE id = $1
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
        result: Any = None if row[7] is None else msgspec.json.decode(row[7])
        return Snapshot(
            job_id=job_id,
            type=row[0],
            run=row[1],
            step=row[2],
            attempt=row[3],
            progress=row[4],
            status=row[5],
            stage=row[6],
            result=result,
            error=row[8],
            created_at=row[9],
            updated_at=row[10],
        )

    async def last_message(self, job_id: str) -> AnyJobMessage | None:
        """The message that ended a job, as its row keeps it; None where it keeps none. Raises as above."""
        row = await self._ask("SELECT message FROM job_messages WHERE id = $1", job_id)
        if row is None or row[0] is None:
            return None
        try:
            return messages.decode_stored(row[0].encode())
        except UnusableMessage:
            return None

    async def check(self) -> None:
        """Raises DatabaseUnavailable unless the view can be read."""
        await self._ask("SELECT FROM job_status LIMIT 0")

    async def close(self) -> None:
        """Drop the connections."""
        self._pool.terminate()

    async def _ask(self, query: str, *arguments: Any) -> Any:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                if not self._pool._initialized:
                    await self._pool
                return await self._pool.fetchrow(query, *arguments)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise DatabaseUnavailable(f"{type(error).__name__}: {error}".rstrip(": ")) from error
