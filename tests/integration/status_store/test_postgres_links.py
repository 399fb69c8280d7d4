"""Connections to Postgres whose other end is lost without being closed, and sessions with settings of others."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast
from urllib.parse import urlsplit

import asyncpg
import pytest

from heimdex_gateway.jobs import repository as gateway_database
from heimdex_gateway.jobs.repository import DatabaseUnavailable
from heimdex_status_store import database as store_database
from heimdex_status_store.database import OUTAGE, migrate
from tests.integration.status_store.test_database import OLD_WRITE, at_revision, patiently, recording
from tests.support.histories import Writer, new_id
from tests.support.links import Link
from tests.support.other_host import OtherPostgres
from tests.support.recording_logger import RecordingLogger
from tests.support.rows import execute, fetch
from tests.support.servers import PostgresServer
from tests.support.waiting import eventually, never

#: Connections of a gateway at once, of which each may cost one request.
SIDE_BY_SIDE = 6
BACKENDS = "SELECT pid FROM pg_stat_activity WHERE application_name = $1"


@asynccontextmanager
async def gateway_of(
    url: str, timeout_seconds: float = gateway_database.TIMEOUT_SECONDS
) -> AsyncIterator[gateway_database.Database]:
    database = gateway_database.Database(url, timeout_seconds)
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def store_of(url: str, journal: RecordingLogger) -> AsyncIterator[store_database.Database]:
    database = store_database.Database(url, cast("Any", journal))
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def locked(url: str, table: str = "jobs") -> AsyncIterator[None]:
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


async def prepared(url: str) -> None:
    """The schema is there."""
    connection = await asyncpg.connect(url)
    await migrate(connection)
    await connection.close()


async def many_connections(database: gateway_database.Database, url: str) -> set[int]:
    """Let the gateway open several connections, which are idle afterwards. Returns their backends."""
    async with locked(url):
        reading = [asyncio.create_task(database.history(new_id())) for _ in range(SIDE_BY_SIDE)]
        reading += [asyncio.create_task(database.job(new_id(), "default")) for _ in range(SIDE_BY_SIDE)]

        async def enough() -> set[int]:
            pids = {row["pid"] for row in await fetch(url, BACKENDS, "heimdex-gateway")}
            return pids if len(pids) >= SIDE_BY_SIDE else set()

        backends = await eventually(enough)
    for task in reading:
        with suppress(DatabaseUnavailable):
            await task
    return backends


async def failures_until_it_reads(database: gateway_database.Database) -> int:
    """Read one after the other, as a caller who repeats a request does."""
    for failures in range(20):
        try:
            await database.history(new_id())
        except DatabaseUnavailable:
            continue
        return failures
    raise AssertionError("it never reads again")


async def test_the_gateway_reads_again_one_failure_after_its_connection_was_lost(other_postgres: OtherPostgres) -> None:
    await prepared(other_postgres.url)
    async with gateway_of(other_postgres.url) as database:
        old = await many_connections(database, other_postgres.local_url)
        assert other_postgres.host.lose_connections() >= SIDE_BY_SIDE
        began = time.monotonic()
        failures = await failures_until_it_reads(database)
        print(f"\nread again after {failures} failures, {time.monotonic() - began:.1f} s")
        assert failures <= 2

        async def gone() -> bool:
            rows = await fetch(other_postgres.local_url, BACKENDS, "heimdex-gateway")
            return not old & {row["pid"] for row in rows}

        # Two hours by default: whoever flushes a table of NAT some times would fill up Postgres.
        await eventually(gone, what="Postgres has ended what nobody listens to")


async def test_the_gateway_reads_again_one_failure_after_a_proxy_discards_its_data(postgres: PostgresServer) -> None:
    await prepared(postgres.url)
    folder = urlsplit(postgres.url).query.removeprefix("host=")
    async with (
        Link(f"{folder}/.s.PGSQL.5432") as link,
        gateway_of(f"postgresql://heimdex@127.0.0.1:{link.port}/heimdex") as database,
    ):
        await many_connections(database, postgres.url)
        assert link.swallow_connections() >= SIDE_BY_SIDE
        assert await failures_until_it_reads(database) <= 2


async def test_a_slow_statement_does_not_make_the_gateway_drop_a_connection(database_url: str) -> None:
    await prepared(database_url)
    backends = BACKENDS + " AND datname = current_database()"
    # The time-out of the client, not of the statement: a busy machine may be late to read Postgres's error.
    async with gateway_of(database_url, timeout_seconds=30.0) as database:
        await database.check()
        before = await fetch(database_url, backends, "heimdex-gateway")
        async with locked(database_url):
            with pytest.raises(DatabaseUnavailable):
                await database.job(new_id(), "default")
        await database.check()
        assert await fetch(database_url, backends, "heimdex-gateway") == before


async def test_the_store_records_again_after_its_connection_was_lost(
    other_postgres: OtherPostgres, journal: RecordingLogger
) -> None:
    async with store_of(other_postgres.url, journal) as database:
        assert await database.run(recording(Writer())) == 1
        other_postgres.host.lose_connections()
        began = time.monotonic()
        # The time-out of a statement, which would notice it too, is 30 s.
        await patiently(database, recording(Writer()))
        print(f"\nrecorded again after {time.monotonic() - began:.1f} s")


async def test_the_store_reconnects_even_without_work(other_postgres: OtherPostgres, journal: RecordingLogger) -> None:
    async with store_of(other_postgres.url, journal) as database:
        await database.run(recording(Writer()))
        before = await fetch(other_postgres.local_url, BACKENDS, "heimdex-status-store")
        keeping = asyncio.create_task(database.keep())
        other_postgres.host.lose_connections()

        async def another() -> bool:
            now = await fetch(other_postgres.local_url, BACKENDS, "heimdex-status-store")
            return database.connected and any(row not in before for row in now)

        await eventually(another)
        keeping.cancel()


async def test_a_statement_that_waits_for_a_lock_is_not_mistaken_for_a_lost_connection(
    other_postgres: OtherPostgres, journal: RecordingLogger
) -> None:
    async with store_of(other_postgres.url, journal) as database:
        await database.run(recording(Writer()))
        async with locked(other_postgres.local_url):
            work = asyncio.create_task(database.run(recording(Writer())))
            began = time.monotonic()
            await eventually(lambda: time.monotonic() - began > 6, what="a dead link had been noticed by now")
        assert await work == 1
        assert not journal.of("postgres_waiting")


async def test_a_migration_of_a_lost_store_does_not_block_another_store(
    other_postgres: OtherPostgres, journal: RecordingLogger
) -> None:
    admin = await asyncpg.connect(other_postgres.local_url)
    await at_revision(admin, "tenants")
    async with store_of(other_postgres.url, journal) as gone, store_of(other_postgres.url, journal) as other:
        async with locked(other_postgres.local_url):
            begun = asyncio.create_task(gone.run(recording(Writer())))

            async def waits() -> Any:
                waiting = "SELECT true FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                return await admin.fetchval(f"{waiting} AND query ~ 'jobs_listed'")

            await eventually(waits)
            other_postgres.host.lose_connections()
            await eventually(begun.done, what="it has noticed")
            assert isinstance(begun.exception(), OUTAGE)
        # The lost connection has created the index, holds the lock, and sends nothing more.
        assert await patiently(other, recording(Writer())) == 1
    await admin.close()


#: What a role or a database may have been given, and no work of ours may fail of.
TIMEOUTS = (
    "statement_timeout",
    "lock_timeout",
    "transaction_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
)
#: Long enough for what each session says first, on a busy machine too.
GIVEN_SECONDS = 0.5


async def give(url: str, **settings: str) -> None:
    """Apply this setting to every new session."""
    database = urlsplit(url).path.strip("/")
    await execute(url, *(f"ALTER DATABASE \"{database}\" SET {name} = '{value}'" for name, value in settings.items()))


async def give_timeouts(url: str) -> None:
    await give(url, **{name: f"{round(GIVEN_SECONDS * 1000)}ms" for name in TIMEOUTS})


async def longer_than_given() -> None:
    began = time.monotonic()
    await eventually(lambda: time.monotonic() - began > GIVEN_SECONDS + 0.3)


async def test_a_migration_ignores_the_time_outs_of_the_role(database_url: str, journal: RecordingLogger) -> None:
    admin = await asyncpg.connect(database_url)
    await at_revision(admin, "tenants")
    await give_timeouts(database_url)
    async with store_of(database_url, journal) as database:
        async with admin.transaction():
            await admin.execute(OLD_WRITE, new_id())  # which the index has to wait for
            migrating = asyncio.create_task(patiently(database, recording(Writer())))
            await eventually(lambda: journal.of("schema_migrating"))
            await longer_than_given()
        assert await migrating == 1
    assert len(journal.of("schema_migrating")) == len(journal.of("schema_migrated")) == 1
    await admin.close()


async def test_a_migration_sets_its_own_time_outs(database_url: str) -> None:
    """A pooler may give each transaction another session, whose settings are not known."""
    admin = await asyncpg.connect(database_url)
    await at_revision(admin, "tenants")
    await give_timeouts(database_url)
    plain = await asyncpg.connect(database_url)
    async with admin.transaction():
        await admin.execute(OLD_WRITE, new_id())
        migrating = asyncio.create_task(migrate(plain))
        await longer_than_given()
    await migrating
    await admin.close()
    await plain.close()


async def test_reads_and_writes_ignore_the_time_outs_of_the_role(database_url: str, journal: RecordingLogger) -> None:
    await prepared(database_url)
    admin = await asyncpg.connect(database_url)
    await give_timeouts(database_url)
    async with store_of(database_url, journal) as store, gateway_of(database_url) as gateway:
        await patiently(store, recording(Writer()))
        await eventually(lambda: reads(gateway))
        async with admin.transaction():
            await admin.execute("LOCK TABLE jobs, job_events IN ACCESS EXCLUSIVE MODE")
            work = asyncio.gather(store.run(recording(Writer())), gateway.history(new_id()))
            await longer_than_given()
        assert await work == [1, []]
    await admin.close()


async def reads(database: gateway_database.Database) -> bool:
    try:
        await database.check()
    except DatabaseUnavailable:
        return False
    return True


async def test_an_idle_connection_ignores_the_time_outs_of_the_role(
    database_url: str, journal: RecordingLogger
) -> None:
    await prepared(database_url)
    await give_timeouts(database_url)
    backends = BACKENDS + " AND datname = current_database()"
    async with store_of(database_url, journal) as store, gateway_of(database_url) as gateway:
        await patiently(store, recording(Writer()))
        await eventually(lambda: reads(gateway))
        before = [await fetch(database_url, backends, f"heimdex-{name}") for name in ("gateway", "status-store")]
        await never(lambda: not store.connected, GIVEN_SECONDS + 0.3)
        after = [await fetch(database_url, backends, f"heimdex-{name}") for name in ("gateway", "status-store")]
    assert all(before)
    assert before == after


async def test_a_store_that_may_not_write_waits_until_it_may(database_url: str, journal: RecordingLogger) -> None:
    """Some providers make a nearly full database read-only. The store waits until they end that, and loses nothing."""
    async with store_of(database_url, journal) as store:
        await store.run(recording(Writer()))
        await give(database_url, default_transaction_read_only="on")
        store._drop()  # a new session, which has it
        with pytest.raises(OUTAGE):
            await store.run(recording(Writer()))
        assert "read-only" in journal.of("postgres_waiting")[-1]["error"]
        admin = await asyncpg.connect(database_url, server_settings={"default_transaction_read_only": "off"})
        await admin.execute(f'ALTER DATABASE "{urlsplit(database_url).path.strip("/")}" RESET ALL')
        await admin.close()
        assert await patiently(store, recording(Writer())) == 1


async def test_the_gateway_cannot_write_although_it_connects_to_a_primary(database_url: str) -> None:
    await prepared(database_url)
    joiner = "&" if "?" in database_url else "?"
    async with gateway_of(f"{database_url}{joiner}target_session_attrs=read-write") as database:
        await database.check()
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            await database._ask("DELETE FROM jobs")


@pytest.mark.parametrize("revision", [None, "jobs", "tenants"])
async def test_a_gateway_is_not_ready_with_an_older_schema_than_it_needs(
    database_url: str, revision: str | None
) -> None:
    admin = await asyncpg.connect(database_url)
    if revision is not None:
        await at_revision(admin, revision)
    async with gateway_of(database_url) as database:
        with pytest.raises(DatabaseUnavailable, match="the schema is older than this gateway requires"):
            await database.check()
        await migrate(admin)
        await database.check()
    await admin.close()
