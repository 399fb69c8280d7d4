"""The status store's connection to Postgres: reconnects, migrates the schema, distinguishes outages from bad data."""

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
_REVISIONS: Final = [path.stem.rpartition("_up_")[2] for path in sorted(MIGRATIONS.glob("*_up_*.sql"))]
#: The schema revision that this version of the store needs: that of the last migration file.
REVISION: Final = _REVISIONS[-1]
#: The relations that must exist, by the revision that creates them. Most revisions create none.
RELATIONS: Final = {
    "jobs": ["jobs", "job_events", "stream_seen", "job_status", "job_messages", "job_history"],
    "installation": ["installation", "job_installation"],
    "refusals": ["refusals"],
}
_MISSING: Final = "SELECT bool_or(to_regclass(name) IS NULL) FROM unnest($1::text[]) AS name"
_CURRENT: Final = "SELECT to_revision FROM migrations ORDER BY id DESC LIMIT 1"
#: Advisory lock of the migration: any number of stores may start at the same time, and only one may migrate.
_MIGRATING: Final = 0x6865696D64657831
#: Time-out of a connection attempt.
CONNECT_SECONDS: Final = 5.0
#: Default time-out of one call of `Database.run`.
WORK_SECONDS: Final = 30.0
#: Time-out of a migration. An index on a large table takes minutes, and must not be started again and again.
MAX_MIGRATION_SECONDS: Final = 6 * 3600.0
#: How often `keep` checks for a connection that broke while it was idle.
_KEEP_SECONDS: Final = 1.0

#: How often Postgres checks during a long statement whether the client is still connected.
_CONNECTION_CHECK: Final = {"client_connection_check_interval": postgres_session.milliseconds(5.0)}

_T = TypeVar("_T")

#: Errors of an outage: Postgres is down, restarting, overloaded or slow. The same work succeeds later.
OUTAGE: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    # Possible errors of a connection that is killed during a query.
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
#: Errors caused by the events themselves, which can therefore never be recorded.
UNRECORDABLE: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    ValueError,
    TypeError,
    OverflowError,
    RecursionError,
)
#: Errors of a missing or incomplete schema. The next connection migrates it.
NO_SCHEMA: Final = (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.UndefinedColumnError)


class Database:
    """One connection to Postgres, opened on demand and dropped when its state is in doubt."""

    def __init__(self, url: str, log: Logger) -> None:
        self._url = url
        self._log = log
        self._connection: asyncpg.Connection | None = None
        self._statement_seconds = 0.0
        self._lock = asyncio.Lock()
        self._logged_reason: str | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection. It is dropped after every error that may be an outage."""
        return self._connection is not None and not self._connection.is_closed()

    async def run(self, work: Callable[[asyncpg.Connection], Awaitable[_T]], timeout: float = WORK_SECONDS) -> _T:
        """Run `work` with exclusive use of the connection.

        This is one attempt of at most `timeout` seconds, and as many to connect. The same time-out applies to each
        statement in Postgres, whatever the role's `statement_timeout` is.

        Raises one of OUTAGE if the same work may succeed later; the reason was then logged, once for each outage. Any
        other asyncpg.PostgresError is caused by the work itself.
        """
        async with self._lock:
            try:
                connection = await self._connect(timeout)
                async with asyncio.timeout(timeout):
                    await self._set_statement_timeout(connection, timeout)
                    result = await work(connection)
            except NO_SCHEMA as error:
                self._drop()
                self._log_outage(error)
                raise asyncpg.InterfaceError(str(error)) from error
            except OUTAGE as error:
                self._drop()
                self._log_outage(error)
                raise
            except Exception as error:
                if self._connection is None or not self._connection.is_closed():
                    raise
                # A connection that breaks while asyncpg looks up types raises errors that are not in OUTAGE.
                self._drop()
                self._log_outage(error)
                raise asyncpg.InterfaceError(f"the connection broke: {error}") from error
            if self._logged_reason is not None:
                self._logged_reason = None
                self._log.info("postgres_connected", message="connected to Postgres")
            return result

    async def keep(self) -> None:
        """Reconnect whenever the idle connection was lost, until cancelled."""
        while True:
            if not self.connected and not self._lock.locked():
                with contextlib.suppress(*OUTAGE, asyncpg.PostgresError):
                    await self.run(_do_nothing)
            await asyncio.sleep(_KEEP_SECONDS)

    async def close(self) -> None:
        """Close the connection at once."""
        self._drop()

    async def _connect(self, timeout: float) -> asyncpg.Connection:
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        connection = await asyncpg.connect(
            self._url, timeout=CONNECT_SECONDS, server_settings={"application_name": "heimdex-status-store"}
        )
        transport: asyncio.Transport = connection._transport  # type: ignore[attr-defined]  # private
        tcp_keepalive.notice_death(transport.get_extra_info("socket"))
        try:
            async with asyncio.timeout(timeout):
                await self._begin_session(connection)
                current = await is_current(connection)
            if not current:
                self._log.info("schema_migrating", message="migrating the schema", revision=REVISION)
                async with asyncio.timeout(MAX_MIGRATION_SECONDS):
                    await migrate(connection)
                self._log.info("schema_migrated", message="the schema is up to date", revision=REVISION)
        except BaseException:
            connection.terminate()
            raise
        if self._logged_reason is None:
            self._log.info("postgres_connected", message="connected to Postgres")
        self._connection = connection
        return connection

    async def _begin_session(self, connection: asyncpg.Connection) -> None:
        await connection.execute(
            postgres_session.setting({**postgres_session.COMMON, **_statement_timeout(WORK_SECONDS)})
        )
        self._statement_seconds = WORK_SECONDS
        # Postgres does not support this check on every platform.
        with contextlib.suppress(asyncpg.InvalidParameterValueError):
            await connection.execute(postgres_session.setting(_CONNECTION_CHECK))

    async def _set_statement_timeout(self, connection: asyncpg.Connection, seconds: float) -> None:
        if seconds != self._statement_seconds:
            await connection.execute(postgres_session.setting(_statement_timeout(seconds)))
            self._statement_seconds = seconds

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    def _log_outage(self, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        if self._logged_reason != reason:
            self._logged_reason = reason
            self._log.warning("postgres_waiting", message="Postgres is not available: waiting for it", error=reason)


def _statement_timeout(seconds: float) -> dict[str, str]:
    return {"statement_timeout": postgres_session.milliseconds(seconds)}


async def is_current(connection: asyncpg.Connection) -> bool:
    """Whether the schema is complete, at REVISION or at a later revision that a newer store has migrated to."""
    if not await connection.fetchval("SELECT to_regclass('migrations') IS NOT NULL"):
        return False
    if await connection.fetchval(_MISSING, _relations_of(REVISION)):
        return False
    current = await connection.fetchval(_CURRENT)
    return current == REVISION or (current is not None and current not in _REVISIONS)


def _relations_of(revision: str | None) -> list[str]:
    """The relations that must exist at this revision. For an unknown revision: all that this version knows."""
    known = _REVISIONS[: _REVISIONS.index(revision) + 1] if revision in _REVISIONS else _REVISIONS
    return [name for step in known for name in RELATIONS.get(step, [])]


async def migrate(connection: asyncpg.Connection) -> None:
    """Migrate the schema to REVISION, unless it is current. This may take long; it does not block other stores' start.

    Each step runs in its own transaction, so that a long step does not hold the locks of the step before.
    """
    started = False
    while True:
        async with connection.transaction(isolation="read_committed"):
            # Both the settings and the lock apply to the transaction only, because with a connection pooler in between
            # the next transaction may run in another session.
            settings = {**postgres_session.COMMON, **_statement_timeout(MAX_MIGRATION_SECONDS)}
            await connection.execute(postgres_session.setting(settings, in_transaction=True))
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIGRATING)
            if await is_current(connection):
                return
            recorded = await connection.fetchval("SELECT to_regclass('migrations') IS NOT NULL")
            if (
                recorded
                and not started
                and await connection.fetchval(_MISSING, _relations_of(await connection.fetchval(_CURRENT)))
            ):
                await connection.execute("DELETE FROM migrations")  # relations were removed: create them again
            started = True
            backend = _InTransaction(connection)
            steps = await asyncpg_trek.plan(backend, MIGRATIONS, REVISION, asyncpg_trek.Direction.up)
            await asyncpg_trek.execute(backend, steps[:1])


class _InTransaction(AsyncpgBackend):  # type: ignore[misc]
    """A backend that uses the connection's current transaction; the library's own starts a serializable one."""

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        yield AsyncpgExecutor(self.connection, self.schema)


async def _do_nothing(_: asyncpg.Connection) -> None:
    pass
