"""The status store's connection to Postgres: waits for it, keeps the schema up to date, tells outages from bad data."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg
import asyncpg_trek
from asyncpg_trek.asyncpg import AsyncpgBackend, AsyncpgExecutor

from heimdex_contracts.runtime import postgres_session, tcp_keepalive
from heimdex_contracts.runtime.logs import Logger

MIGRATIONS: Final = Path(__file__).parent / "migrations"
#: The revision that this version of the store writes to: the last file's.
REVISION: Final = "installation"
#: What there must be at this revision, by the one that made it, oldest first.
RELATIONS: Final = {
    "jobs": ["jobs", "job_events", "stream_seen", "job_status", "job_messages", "job_history"],
    "tenants": [],
    "lists": [],
    "durables": [],
    REVISION: ["installation", "job_installation"],
}
_MISSING: Final = "SELECT bool_or(to_regclass(name) IS NULL) FROM unnest($1::text[]) AS name"
_CURRENT: Final = "SELECT to_revision FROM migrations ORDER BY id DESC LIMIT 1"
#: Any number of stores may start at once; this advisory lock lets one of them migrate.
_MIGRATING: Final = 0x6865696D64657831
#: Of a connection, and of one try of a piece of work.
CONNECT_SECONDS: Final = 5.0
WORK_SECONDS: Final = 30.0
#: An index on a large table takes minutes, and must not be begun again and again.
MAX_MIGRATION_SECONDS: Final = 6 * 3600.0
#: How often Postgres looks, while a statement takes long, whether there is still somebody to be told.
_LISTENED_SECONDS: Final = 5.0
#: How soon a connection that broke while nothing was to be done is replaced.
_KEEP_SECONDS: Final = 1.0

_LISTENED: Final = {"client_connection_check_interval": postgres_session.milliseconds(_LISTENED_SECONDS)}

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
        self._statement_seconds = 0.0
        self._lock = asyncio.Lock()
        self._said: str | None = None

    @property
    def connected(self) -> bool:
        """Whether the last thing that we tried worked."""
        return self._connection is not None and not self._connection.is_closed()

    async def run(self, work: Callable[[asyncpg.Connection], Awaitable[_T]], timeout: float = WORK_SECONDS) -> _T:
        """Run `work` with the connection, alone; one try of at most `timeout` seconds, and as much to connect.

        Postgres gives each of its statements as long, whatever its role's `statement_timeout` says.

        Raises one of OUTAGE when the same work may succeed later (the reason was logged, once an outage); any other
        asyncpg.PostgresError is about the work itself.
        """
        async with self._lock:
            try:
                connection = await self._connect(timeout)
                async with asyncio.timeout(timeout):
                    await self._allow(connection, timeout)
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

    async def keep(self) -> None:
        """Until cancelled: connect again where the connection was lost while there was nothing to do."""
        while True:
            if not self.connected and not self._lock.locked():
                with contextlib.suppress(*OUTAGE, asyncpg.PostgresError):
                    await self.run(_nothing)
            await asyncio.sleep(_KEEP_SECONDS)

    async def close(self) -> None:
        """Drop the connection."""
        self._drop()

    async def _connect(self, timeout: float) -> asyncpg.Connection:
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        connection = await asyncpg.connect(
            self._url, timeout=CONNECT_SECONDS, server_settings={"application_name": "heimdex-status-store"}
        )
        tcp_keepalive.notice_death(connection._transport.get_extra_info("socket"))
        try:
            async with asyncio.timeout(timeout):
                await self._begin_session(connection)
                current = await is_current(connection)
            if not current:
                self._log.info("schema_migrating", message="bringing the schema up to date", revision=REVISION)
                async with asyncio.timeout(MAX_MIGRATION_SECONDS):
                    await migrate(connection)
                self._log.info("schema_migrated", message="the schema is up to date", revision=REVISION)
        except BaseException:
            connection.terminate()
            raise
        if self._said is None:
            self._log.info("postgres_connected", message="connected to Postgres")
        self._connection = connection
        return connection

    async def _begin_session(self, connection: asyncpg.Connection) -> None:
        await connection.execute(
            postgres_session.setting({**postgres_session.COMMON, **_statement_timeout(WORK_SECONDS)})
        )
        self._statement_seconds = WORK_SECONDS
        # Not every platform that Postgres runs on can look.
        with contextlib.suppress(asyncpg.InvalidParameterValueError):
            await connection.execute(postgres_session.setting(_LISTENED))

    async def _allow(self, connection: asyncpg.Connection, seconds: float) -> None:
        if seconds != self._statement_seconds:
            await connection.execute(postgres_session.setting(_statement_timeout(seconds)))
            self._statement_seconds = seconds

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    def _waiting(self, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        if self._said != reason:
            self._said = reason
            self._log.warning("postgres_waiting", message="Postgres cannot be used: waiting for it", error=reason)


def _statement_timeout(seconds: float) -> dict[str, str]:
    return {"statement_timeout": postgres_session.milliseconds(seconds)}


async def is_current(connection: asyncpg.Connection) -> bool:
    """Whether everything is there, at REVISION or where a newer store has gone further."""
    if not await connection.fetchval("SELECT to_regclass('migrations') IS NOT NULL"):
        return False
    if await connection.fetchval(_MISSING, _made_by(REVISION)):
        return False
    current = await connection.fetchval(_CURRENT)
    known = {path.stem.rpartition("_up_")[2] for path in MIGRATIONS.glob("*_up_*.sql")}
    return current == REVISION or (current is not None and current not in known)


def _made_by(revision: str | None) -> list[str]:
    """What there must be at this revision; at one that is not known here, all that is known."""
    names: list[str] = []
    for step, made in RELATIONS.items():
        names += made
        if step == revision:
            break
    return names


async def migrate(connection: asyncpg.Connection) -> None:
    """Bring the schema to REVISION, unless it is current. May take long, and blocks no other store's start.

    Each step is a transaction of its own: one that takes long must not hold the locks of the one before.
    """
    begun = False
    while True:
        async with connection.transaction(isolation="read_committed"):
            # Of the transaction, as is the lock: a pooler may be in front, and give the next one to another session.
            settings = {**postgres_session.COMMON, **_statement_timeout(MAX_MIGRATION_SECONDS)}
            await connection.execute(postgres_session.setting(settings, in_transaction=True))
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIGRATING)
            if await is_current(connection):
                return
            recorded = await connection.fetchval("SELECT to_regclass('migrations') IS NOT NULL")
            if (
                recorded
                and not begun
                and await connection.fetchval(_MISSING, _made_by(await connection.fetchval(_CURRENT)))
            ):
                await connection.execute("DELETE FROM migrations")  # somebody removed some: they can be made again
            begun = True
            backend = _InTransaction(connection)
            steps = await asyncpg_trek.plan(backend, MIGRATIONS, REVISION, asyncpg_trek.Direction.up)
            await asyncpg_trek.execute(backend, steps[:1])


class _InTransaction(AsyncpgBackend):  # type: ignore[misc]
    """Works in the transaction that its connection is in; the library's own would begin one of its own, for itself."""

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        yield AsyncpgExecutor(self.connection, self.schema)


async def _nothing(_: asyncpg.Connection) -> None:
    pass
