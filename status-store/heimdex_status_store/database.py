"""The status store's connection to Postgres: waits for it, keeps the schema up to date, tells outages from bad data."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import asyncpg
import asyncpg_trek
from asyncpg_trek.asyncpg import AsyncpgBackend

from heimdex_contracts.runtime.logs import Logger

MIGRATIONS: Final = Path(__file__).parent / "migrations"
#: The revision that this version of the store writes to: the last file's.
REVISION: Final = "jobs"
#: What there must be at this revision.
RELATIONS: Final = ["jobs", "job_events", "stream_seen", "job_status", "job_messages", "job_history"]
#: Any number of stores may start at once; this advisory lock lets one of them migrate.
_MIGRATING: Final = 0x6865696D64657831

_T = TypeVar("_T")

#: Postgres is away, restarting, overloaded or slow: the same work succeeds later.
OUTAGE: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    # What a connection that is killed in the middle of a query may say.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.QueryCanceledError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.LockNotAvailableError,
    asyncpg.InternalServerError,
    asyncpg.InsufficientPrivilegeError,
)
#: The schema is gone or half there: make it again.
NO_SCHEMA: Final = (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.UndefinedColumnError)


class Database:
    """One connection, made when it is needed and dropped after any doubt."""

    def __init__(self, url: str, log: Logger) -> None:
        self._url = url
        self._log = log
        self._connection: asyncpg.Connection | None = None
        self._lock = asyncio.Lock()
        self._said: str | None = None

    @property
    def connected(self) -> bool:
        """Whether the last thing that we tried worked."""
        return self._connection is not None and not self._connection.is_closed()

    async def run(self, work: Callable[[asyncpg.Connection], Awaitable[_T]], timeout: float = 30.0) -> _T:
        """Run `work` with the connection, alone; one try of at most `timeout` seconds.

        Raises one of OUTAGE when the same work may succeed later (the reason was logged, once an outage); any other
        asyncpg.PostgresError is about the work itself.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(timeout):
                    connection = await self._connect()
                    result = await work(connection)
            except NO_SCHEMA as error:
                self._drop()
                self._waiting(error)
                raise asyncpg.InterfaceError(str(error)) from error
            except OUTAGE as error:
                self._drop()
                self._waiting(error)
                raise
            except Exception as error:
                if self._connection is None or not self._connection.is_closed():
                    raise
                # A connection that breaks while asyncpg looks up types fails in ways of its own.
                self._drop()
                self._waiting(error)
                raise asyncpg.InterfaceError(f"the connection broke: {error}") from error
            if self._said is not None:
                self._said = None
                self._log.info("postgres_connected", message="connected to Postgres")
            return result

    async def close(self) -> None:
        """Drop the connection."""
        self._drop()

    async def _connect(self) -> asyncpg.Connection:
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        connection = await asyncpg.connect(
            self._url, timeout=5, server_settings={"application_name": "heimdex-status-store"}
        )
        try:
            await migrate(connection)
        except BaseException:
            connection.terminate()
            raise
        if self._said is None:
            self._log.info("postgres_connected", message="connected to Postgres")
        self._connection = connection
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    def _waiting(self, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        if self._said != reason:
            self._said = reason
            self._log.warning("postgres_waiting", message="Postgres cannot be used: waiting for it", error=reason)


async def migrate(connection: asyncpg.Connection) -> None:
    """Bring the schema to REVISION; nothing to do where it is there, or where a newer store has gone further."""
    known = {path.stem.rpartition("_up_")[2] for path in MIGRATIONS.glob("*_up_*.sql")}
    await connection.execute("SELECT pg_advisory_lock($1)", _MIGRATING)
    try:
        if await connection.fetchval("SELECT to_regclass('migrations') IS NOT NULL"):
            missing = "SELECT bool_or(to_regclass(name) IS NULL) FROM unnest($1::text[]) AS name"
            if await connection.fetchval(missing, RELATIONS):
                await connection.execute("DELETE FROM migrations")  # somebody removed some: they can be made again
            current = await connection.fetchval("SELECT to_revision FROM migrations ORDER BY id DESC LIMIT 1")
            if current == REVISION or (current is not None and current not in known):
                return
        backend = AsyncpgBackend(connection)
        steps = await asyncpg_trek.plan(backend, MIGRATIONS, REVISION, asyncpg_trek.Direction.up)
        await asyncpg_trek.execute(backend, steps)
    finally:
        if not connection.is_closed():
            await connection.execute("SELECT pg_advisory_unlock($1)", _MIGRATING)
