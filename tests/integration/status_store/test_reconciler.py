"""A job whose messages are gone is published again only if it is still unfinished."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import pytest_asyncio

from heimdex_contracts.history import event_rows
from heimdex_contracts.messages import AnyJobMessage, Canceled
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.publisher import Publisher
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_status_store import queries
from heimdex_status_store.database import Database, migrate
from heimdex_status_store.projection import job_rows
from heimdex_status_store.reconciler import Reconciler
from heimdex_status_store.refusals import Refusals
from tests.integration.conftest import count
from tests.support.histories import START, due
from tests.support.recording_logger import RecordingLogger


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, cast("Any", RecordingLogger()))
    await database.run(migrate)
    yield database
    await database.close()


async def record(database: Database, *events: AnyJobMessage) -> None:
    await database.run(lambda connection: queries.record(connection, job_rows(events), event_rows(events)))


async def test_a_job_that_is_canceled_while_it_is_published_again_does_not_run(
    ready: Broker, topology: Topology, database: Database, journal: RecordingLogger
) -> None:
    log = cast("Any", journal)
    job = due()
    await record(database, job)

    class CanceledFirst(Publisher):
        """A cancel of the job is published, recorded and removed from the stream just before the publish."""

        async def publish(self, *arguments: Any, **options: Any) -> int:
            cancel = Canceled(job_id=job.job_id, type=job.type, step=1, created_at=START, at=START)
            await record(database, cancel)
            return await super().publish(*arguments, **options)

    publisher = CanceledFirst(ready, log)
    refusals = Refusals(ready, publisher, database, 3600, log)
    reconciler = Reconciler(ready, topology, database, publisher, refusals, log)
    await reconciler._compare_page(None, None)
    assert await count(ready) == 0
    assert not journal.of("job_restored")


@pytest.mark.allows("restored")
async def test_an_unfinished_job_without_a_message_is_published_again(
    ready: Broker, topology: Topology, database: Database, journal: RecordingLogger
) -> None:
    log = cast("Any", journal)
    publisher = Publisher(ready, log)
    await record(database, due())
    refusals = Refusals(ready, publisher, database, 3600, log)
    await Reconciler(ready, topology, database, publisher, refusals, log)._compare_page(None, None)
    assert await count(ready) == 1
