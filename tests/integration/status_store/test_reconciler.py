"""A job whose messages are gone is published again only if it is still unfinished."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, cast

import msgspec
import pytest
import pytest_asyncio

from heimdex_contracts import messages, patches, subjects
from heimdex_contracts.history import event_rows
from heimdex_contracts.messages import AnyJobMessage, Canceled, Due
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.publisher import Publisher
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_status_store import queries
from heimdex_status_store.database import Database, migrate
from heimdex_status_store.projection import job_rows
from heimdex_status_store.reconciler import Reconciler
from heimdex_status_store.recorder import MAX_BATCH_BYTES
from heimdex_status_store.refusals import Refusals
from tests.integration.conftest import count
from tests.support.histories import START, Writer, due
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


PARAMS, OUTPUT = b'{"source":"\xc3\xa9", "size":1.50}', b'["\\u00e9", 1E+2]'


def with_params_and_outputs() -> Writer:
    writer = Writer(params=msgspec.Raw(PARAMS), output=msgspec.Raw(OUTPUT))
    writer.finish_stage()
    return writer


def start(
    ready: Broker,
    topology: Topology,
    database: Database,
    journal: RecordingLogger,
    kind: type[Reconciler] = Reconciler,
) -> Reconciler:
    log = cast("Any", journal)
    publisher = Publisher(ready, log)
    return kind(
        ready, topology, database, publisher, Refusals(ready, publisher, database, 3600, log), log, timedelta(0)
    )


async def last(ready: Broker, job_id: str) -> dict[str, msgspec.Raw]:
    """Return the fields of the newest message of this job in the stream."""
    stored = await ready.last_message(subjects.JOBS, subjects.job_filter(job_id))
    assert stored is not None
    return msgspec.json.decode(stored.data, type=dict[str, msgspec.Raw])


@pytest.mark.allows("restored")
async def test_a_restored_job_has_its_params_its_outputs_and_fields_of_a_newer_release(
    ready: Broker, topology: Topology, database: Database, journal: RecordingLogger
) -> None:
    writer = with_params_and_outputs()
    newer = messages.encode(writer.events[-1])[:-1] + b',"entered": 1.50}'
    events = [writer.events[-1]]
    await database.run(
        lambda connection: queries.record(connection, job_rows(events, [newer]), event_rows(events), refill=True)
    )
    await start(ready, topology, database, journal)._compare_page(None, None)
    fields = await last(ready, writer.due.job_id)
    assert (bytes(fields["params"]), bytes(fields["entered"])) == (PARAMS, b"1.50")
    restored = messages.decode_stored(msgspec.json.encode(fields))
    assert isinstance(restored, Due)
    assert restored.reason == "restored"
    assert restored.finished == writer.due.finished
    assert bytes(restored.finished[0].output) == OUTPUT


@pytest.mark.allows("restored")
async def test_a_row_of_a_store_that_kept_params_in_the_message_is_restored_with_them(
    ready: Broker, topology: Topology, database: Database, journal: RecordingLogger
) -> None:
    writer = with_params_and_outputs()
    await record(database, writer.due)
    whole = messages.encode(writer.due).decode()
    await database.run(lambda connection: connection.execute("UPDATE jobs SET params = NULL, message = $1", whole))
    await start(ready, topology, database, journal)._compare_page(None, None)
    assert bytes((await last(ready, writer.due.job_id))["params"]) == PARAMS


@pytest.mark.parametrize("number", [2, 600])
async def test_an_emptied_database_gets_params_and_outputs_from_the_stream_whatever_else_is_in_it(
    ready: Broker, topology: Topology, database: Database, journal: RecordingLogger, number: int
) -> None:
    jobs = [with_params_and_outputs().due for _ in range(number)]
    broken = msgspec.structs.replace(with_params_and_outputs().due, params=msgspec.Raw(b'{"a":"\xff"}'))
    jobs.insert(number // 2, broken)
    for job in jobs:
        ack = await ready.publish(subjects.job_subject(job.stage, job.job_id), messages.encode(job), {}, timeout=10)
        assert ack.error is None
    await start(ready, topology, database, journal)._check(set())
    rows = await database.run(lambda connection: connection.fetch("SELECT message::text, params::text FROM jobs"))
    restored = [messages.decode_stored(patches.whole(row[0], row[1])) for row in rows]
    assert {(job.job_id, bytes(job.params), bytes(job.finished[0].output)) for job in restored} == {
        (job.job_id, PARAMS, OUTPUT) for job in jobs if job is not broken
    }


async def test_an_emptied_database_is_filled_again_with_few_bytes_at_a_time(
    ready: Broker, topology: Topology, database: Database, journal: RecordingLogger
) -> None:
    large = msgspec.Raw(b'{"a":"%s"}' % (b"a" * 900 * 1024))
    publisher = Publisher(ready, cast("Any", journal))
    for _ in range(20):
        await publisher.publish(due(params=large), expected=0)
    written: list[int] = []

    class Watched(Reconciler):
        async def _record(self, batch: list[tuple[AnyJobMessage, bytes]]) -> int:
            written.append(sum(len(payload) for _, payload in batch))
            return await super()._record(batch)

    reconciler = start(ready, topology, database, journal, Watched)
    await reconciler._check(set())
    assert sum(written) > 20 * 900 * 1024
    assert max(written) < MAX_BATCH_BYTES + 1024 * 1024
    assert journal.of("jobs_refilled")[0]["count"] == 20


@pytest.mark.parametrize("is_recorded", [True, False])
async def test_the_message_of_a_job_that_waits_in_its_queue_is_decoded_only_if_its_row_is_behind(
    ready: Broker,
    topology: Topology,
    database: Database,
    journal: RecordingLogger,
    monkeypatch: pytest.MonkeyPatch,
    is_recorded: bool,
) -> None:
    writer = with_params_and_outputs()
    await record(database, *(writer.events if is_recorded else writer.events[:1]))
    await Publisher(ready, cast("Any", journal)).publish(writer.due, 0)
    decoded = []
    monkeypatch.setattr(messages, "decode_job", lambda *_: decoded.append(1) or writer.due)
    reconciler = start(ready, topology, database, journal)
    reconciler._refusals._loaded = True
    await reconciler._compare_page(None, None)
    assert bool(decoded) is not is_recorded
