"""The status store's database: migrations, removed tables, outages."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import asyncpg
import asyncpg_trek
import pytest
import pytest_asyncio
from asyncpg_trek.asyncpg import AsyncpgBackend

from heimdex_contracts.history import event_rows
from heimdex_contracts.messages import DEFAULT_TENANT
from heimdex_status_store import queries
from heimdex_status_store.database import MIGRATIONS, OUTAGE, REVISION, Database, migrate
from heimdex_status_store.projection import job_rows
from tests.support.histories import Writer, new_id
from tests.support.recording_logger import RecordingLogger
from tests.support.servers import PostgresServer
from tests.support.waiting import eventually

TABLES = {"jobs", "job_events", "job_status", "job_history", "migrations"}

#: Of the schema, from nothing to what this version writes to.
STEPS = len(list(MIGRATIONS.glob("*_up_*.sql")))

NewDatabase = Callable[[], Database]


@pytest.fixture
def journal() -> RecordingLogger:
    return RecordingLogger()


@pytest_asyncio.fixture
async def new_database(database_url: str, journal: RecordingLogger) -> AsyncIterator[NewDatabase]:
    databases: list[Database] = []

    def make() -> Database:
        databases.append(Database(database_url, cast("Any", journal)))
        return databases[-1]

    yield make
    for database in databases:
        await database.close()


@pytest_asyncio.fixture
async def admin(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def tables(admin: asyncpg.Connection) -> set[str]:
    rows = await admin.fetch("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
    return {entry["table_name"] for entry in rows}


def recording(writer: Writer) -> Callable[[asyncpg.Connection], Awaitable[int]]:
    async def record(connection: asyncpg.Connection) -> int:
        return (await queries.record(connection, job_rows(writer.events), event_rows(writer.events))).raised

    return record


async def patiently(database: Database, work: Callable[[asyncpg.Connection], Awaitable[Any]]) -> Any:
    """Run this as the recorder does: again after an outage."""

    async def once() -> list[Any]:
        try:
            return [await database.run(work)]
        except OUTAGE:
            return []

    return (await eventually(once, timeout=20, what="the store can write again"))[0]


async def test_an_empty_database_gets_the_schema(new_database: NewDatabase, admin: asyncpg.Connection) -> None:
    assert await new_database().run(recording(Writer())) == 1
    assert await tables(admin) >= TABLES


@pytest.mark.containers
async def test_any_number_of_stores_may_migrate_at_once(new_database: NewDatabase, admin: asyncpg.Connection) -> None:
    databases = [new_database() for _ in range(6)]
    await asyncio.gather(*(database.run(recording(Writer())) for database in databases))
    assert await admin.fetchval("SELECT count(*) FROM jobs") == 6
    assert await admin.fetchval("SELECT count(*) FROM migrations") == STEPS


async def test_migrating_again_keeps_what_is_there(new_database: NewDatabase, admin: asyncpg.Connection) -> None:
    await new_database().run(recording(Writer()))
    for _ in range(3):
        await migrate(admin)
    assert await admin.fetchval("SELECT count(*) FROM jobs") == 1
    assert await admin.fetchval("SELECT count(*) FROM migrations") == STEPS


async def test_a_newer_stores_schema_is_left_alone(new_database: NewDatabase, admin: asyncpg.Connection) -> None:
    await new_database().run(recording(Writer()))
    await admin.execute("INSERT INTO migrations (from_revision, to_revision) VALUES ($1, 'from_the_future')", REVISION)
    assert await new_database().run(recording(Writer())) == 1
    assert await admin.fetchval("SELECT count(*) FROM migrations") == STEPS + 1


async def at_revision(admin: asyncpg.Connection, revision: str) -> None:
    """Migrate to the schema of an older version."""
    backend = AsyncpgBackend(admin)
    await asyncpg_trek.execute(
        backend, await asyncpg_trek.plan(backend, MIGRATIONS, revision, asyncpg_trek.Direction.up)
    )


#: As the first version of the store writes a job.
OLD_WRITE = """
INSERT INTO jobs (id, type, run, step, attempt, progress, status, created_at, updated_at, message)
VALUES ($1, 'mock_process', 1, 0, 0, 0, 'pending', now(), now(), '{}')
"""


async def test_old_rows_belong_to_the_default_tenant_and_an_older_store_can_still_write(
    new_database: NewDatabase, admin: asyncpg.Connection
) -> None:
    await at_revision(admin, "jobs")
    before, after = new_id(), new_id()
    await admin.execute(OLD_WRITE, before)
    assert await new_database().run(recording(Writer())) == 1
    await admin.execute(OLD_WRITE, after)
    rows = await admin.fetch(
        "SELECT id::text, tenant FROM job_status WHERE id = ANY($1::text[]::uuid[])", [before, after]
    )
    assert {row["id"]: row["tenant"] for row in rows} == {before: DEFAULT_TENANT, after: DEFAULT_TENANT}
    indexes = {row[0] for row in await admin.fetch("SELECT indexname FROM pg_indexes WHERE tablename = 'jobs'")}
    assert indexes == {"jobs_pkey", "jobs_unfinished", "jobs_listed"}


async def test_a_long_migration_is_not_restarted_and_rows_can_be_read_meanwhile(
    new_database: NewDatabase, admin: asyncpg.Connection, database_url: str, journal: RecordingLogger
) -> None:
    await at_revision(admin, "tenants")
    await admin.execute(OLD_WRITE, new_id())
    writing = await asyncpg.connect(database_url)
    try:
        await writing.execute("BEGIN")
        await writing.execute(OLD_WRITE, new_id())  # which the index has to wait for
        timeout = 3.0
        migrating = asyncio.create_task(
            new_database().run(lambda connection: connection.fetchval("SELECT count(*) FROM jobs"), timeout)
        )
        waited = "SELECT max(now() - query_start) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"

        async def for_long() -> bool:
            backend = await admin.fetchval(f"{waited} AND query ~ 'jobs_listed' AND datname = current_database()")
            return backend is not None and backend.total_seconds() > timeout + 1

        await eventually(for_long)
        assert await admin.fetchval("SELECT count(*) FROM job_status") == 1
        await writing.execute("COMMIT")
        assert await migrating == 2
    finally:
        await writing.close()
    assert len(journal.of("schema_migrating")) == len(journal.of("schema_migrated")) == 1
    assert not journal.of("postgres_waiting")


@pytest.mark.parametrize(
    "accident",
    [
        "TRUNCATE jobs, job_events",
        "DROP TABLE jobs CASCADE",
        "DROP TABLE job_events CASCADE",
        "DROP TABLE jobs, job_events CASCADE",
        "DROP TABLE jobs, job_events, migrations CASCADE",
        "DROP TABLE migrations",
        "DROP VIEW job_status CASCADE",
        "DROP VIEW job_history CASCADE",
        "DROP TABLE stream_seen CASCADE",
        "DROP SCHEMA public CASCADE; CREATE SCHEMA public",
    ],
)
async def test_removed_database_objects_are_created_again_without_a_restart(
    new_database: NewDatabase, admin: asyncpg.Connection, accident: str
) -> None:
    database = new_database()
    await database.run(recording(Writer()))
    whole = await tables(admin)
    await admin.execute(accident)
    writer = Writer()
    assert await patiently(database, recording(writer)) == 1
    # A store that starts now finds, or makes, all that is missing.
    assert await patiently(new_database(), recording(Writer())) == 1
    assert await tables(admin) == whole
    assert await admin.fetchval("SELECT status FROM job_status WHERE id = $1", writer.due.job_id) == "pending"


async def test_a_lost_connection_is_an_outage_and_the_next_attempt_connects_again(
    new_database: NewDatabase, admin: asyncpg.Connection
) -> None:
    database = new_database()
    await database.run(recording(Writer()))
    assert database.connected
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert await patiently(database, recording(Writer())) == 1
    assert await admin.fetchval("SELECT count(*) FROM jobs") == 2


async def test_work_that_takes_too_long_is_an_outage(new_database: NewDatabase) -> None:
    database = new_database()
    with pytest.raises(OUTAGE):
        await database.run(lambda connection: connection.execute("SELECT pg_sleep(60)"), timeout=2)
    assert await patiently(database, lambda connection: connection.fetchval("SELECT 1")) == 1


async def test_bad_data_is_not_an_outage(new_database: NewDatabase) -> None:
    with pytest.raises(asyncpg.DataError) as caught:
        await new_database().run(lambda connection: connection.execute("SELECT 1/0"))
    assert not isinstance(caught.value, OUTAGE)


async def test_the_store_waits_for_a_restart_of_postgres_and_logs_it_once(
    own_postgres: PostgresServer, journal: RecordingLogger
) -> None:
    database = Database(own_postgres.url, cast("Any", journal))
    await database.run(recording(Writer()))
    own_postgres.kill()
    for _ in range(3):
        with pytest.raises(OUTAGE):
            await database.run(recording(Writer()))
    assert not database.connected
    own_postgres.start()
    assert await patiently(database, recording(Writer())) == 1
    assert len(journal.of("postgres_connected")) == 2
    reasons = [entry["error"] for entry in journal.of("postgres_waiting")]
    assert len(reasons) == len(set(reasons))
    await database.close()
