"""The callbacks that are due according to the rows, their attempts, and that recording them changes nothing else."""

from typing import Any, cast

import asyncpg
import msgspec
import pytest

from heimdex_contracts import callbacks, messages, subjects
from heimdex_contracts.callbacks import CallbackDelivered, CallbackFailed, CallbackGivenUp, CallbackResult
from heimdex_contracts.history import callback_row, event_rows
from heimdex_contracts.job_object import job_object
from heimdex_contracts.lifecycle import snapshot
from heimdex_contracts.messages import AnyMessage, Canceled, Completed, Due, Failed
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_status_store import queries
from heimdex_status_store.callback_outbox import CallbackOutbox, needs_callback
from heimdex_status_store.database import Database
from heimdex_status_store.projection import job_rows
from tests.integration.conftest import count
from tests.integration.status_store.test_queries import history, row
from tests.support.histories import START, Writer
from tests.support.recording_logger import RecordingLogger

URL = "https://shop.example/hooks"


def finished(status: str, url: str | None = URL) -> list[AnyMessage]:
    """The events of a job that reached this terminal state."""
    writer = Writer()
    first = writer.due
    common: dict[str, Any] = {"job_id": first.job_id, "type": first.type, "step": 1, "created_at": START, "at": START}
    last = {
        "completed": Completed(**common, stage="indexing", result=msgspec.Raw(b"{}"), progress=100),
        "failed": Failed(**common, stage="extracting", attempt=1, error="oh"),
        "canceled": Canceled(**common),
    }[status]
    return [msgspec.structs.replace(event, callback_url=url) for event in (first, last)]


async def write(connection: asyncpg.Connection, events: list[AnyMessage]) -> Any:
    await queries.record(connection, job_rows(events), event_rows(events))
    return events[-1]


async def record(connection: asyncpg.Connection, *results: CallbackResult) -> None:
    await queries.record_callbacks(connection, [callback_row(one) for one in results])


async def callbacks_due(connection: asyncpg.Connection) -> dict[str, int]:
    """Return the number of attempts by job id, read in pages of two."""
    attempts_by_job: dict[str, int] = {}
    after = None
    while page := await queries.callbacks_due(connection, after, 2):
        after = page[-1][0]
        for job_id, text, attempts in page:
            assert messages.decode_stored(text.encode()).job_id == job_id
            attempts_by_job[job_id] = attempts
    return attempts_by_job


@pytest.mark.parametrize("status", ["completed", "failed", "canceled"])
async def test_a_finished_jobs_callback_is_due_until_it_is_delivered_or_given_up(
    connection: asyncpg.Connection,
    status: str,
) -> None:
    one, other = await write(connection, finished(status)), await write(connection, finished(status))
    await write(connection, finished(status, url=None))
    assert await callbacks_due(connection) == {one.job_id: 0, other.job_id: 0}
    before = await row(connection, one.job_id)
    for attempts in (1, 2):
        await record(connection, CallbackFailed(end=one, tries=attempts, at=START, error="no", delay_seconds=5))
    assert await callbacks_due(connection) == {one.job_id: 2, other.job_id: 0}
    await record(
        connection,
        CallbackDelivered(end=one, tries=3, at=START),
        CallbackGivenUp(end=other, tries=1, at=START, error="gone"),
    )
    assert await callbacks_due(connection) == {}
    assert await row(connection, one.job_id) == before
    kinds = [entry[3] for entry in await history(connection, one.job_id)][-3:]
    assert kinds == ["callback_failed", "callback_failed", "callback_delivered"]


async def test_an_unfinished_job_has_no_callback_due(connection: asyncpg.Connection) -> None:
    failed = await write(connection, finished("failed"))
    again = Due(
        job_id=failed.job_id,
        type=failed.type,
        step=2,
        run=2,
        created_at=START,
        at=START,
        stage="extracting",
        reason="retried",
        callback_url=URL,
    )
    await write(connection, [again])
    await write(connection, finished("completed")[:1])
    assert await callbacks_due(connection) == {}


async def test_all_callbacks_due_are_returned_across_pages(connection: asyncpg.Connection) -> None:
    ends = [await write(connection, finished("completed")) for _ in range(7)]
    assert await callbacks_due(connection) == {end.job_id: 0 for end in ends}


def with_params_and_outputs(status: str) -> list[AnyMessage]:
    writer = Writer(params=msgspec.Raw(b'{"source":"https://example.com"}'), output=msgspec.Raw(b'{"frames":[1, 2.0]}'))
    writer.finish_stage()
    if status == "failed":
        writer.fail()
    elif status == "canceled":
        writer.cancel()
    else:
        writer.finish_stage()
        writer.finish_stage()
    return [msgspec.structs.replace(event, callback_url=URL) for event in writer.events]


@pytest.mark.allows("callbacks_restored")
@pytest.mark.parametrize("status", ["completed", "failed", "canceled"])
async def test_a_due_callback_has_the_result_but_neither_params_nor_the_stages_outputs(
    ready: Broker, database_url: str, connection: asyncpg.Connection, status: str, journal: RecordingLogger
) -> None:
    outbox, database = CallbackOutbox(ready, cast("Any", journal)), Database(database_url, cast("Any", journal))
    events = with_params_and_outputs(status)
    await write(connection, events)
    end = events[-1]
    assert needs_callback(end)
    assert end.params
    subject = subjects.callback_subject(subjects.CALLBACK_DUE, end.job_id)
    assert await outbox.publish(end)
    published = await ready.last_message(subjects.CALLBACKS, subject)
    assert published is not None
    await ready.delete(subjects.CALLBACKS, published.sequence)
    try:
        assert await outbox.restore(database, "a new stream") == 0
    finally:
        await database.close()
    restored = await ready.last_message(subjects.CALLBACKS, subject)
    assert restored is not None
    for stored in (published, restored):
        due = callbacks.decode_work(stored.subject, stored.data)
        assert not {b"https://example.com", b"params"} & set(stored.data.split(b'"'))
        assert job_object(snapshot(due.end)) == job_object(snapshot(end))
        assert stored.data.count(b"[1, 2.0]") == (status == "completed"), "that of the last stage, in the result"
        assert [run.stage for run in due.end.finished] == [run.stage for run in end.finished]


async def test_a_job_whose_outputs_speak_of_a_callback_has_none(
    ready: Broker, database_url: str, connection: asyncpg.Connection, journal: RecordingLogger
) -> None:
    writer = Writer(output=msgspec.Raw(b'{"callback_url":"https://example.com"}'))
    writer.finish_stage()
    writer.fail()
    await write(connection, writer.events)
    database = Database(database_url, cast("Any", journal))
    try:
        assert await CallbackOutbox(ready, cast("Any", journal)).restore(database, "a new stream") == 0
    finally:
        await database.close()
    assert await count(ready, subjects.CALLBACKS) == 0


async def test_a_result_recorded_twice_is_one_entry_and_a_result_of_an_unknown_job_none(
    connection: asyncpg.Connection,
) -> None:
    end = await write(connection, finished("completed"))
    stranger = finished("completed")[-1]
    assert isinstance(stranger, Completed)
    delivered = CallbackDelivered(end=end, tries=1, at=START)
    await record(connection, delivered, delivered, CallbackDelivered(end=stranger, tries=1, at=START))
    await record(connection, delivered)
    assert len(await history(connection, end.job_id)) == 3
    assert await history(connection, stranger.job_id) == []
