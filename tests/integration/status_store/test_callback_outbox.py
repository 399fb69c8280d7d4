"""What the rows say of callbacks: who is still owed one, after how many tries, and that nothing else moves by them."""

from typing import Any

import asyncpg
import msgspec
import pytest

from heimdex_contracts import messages
from heimdex_contracts.callbacks import CallbackDelivered, CallbackFailed, CallbackGivenUp, CallbackResult
from heimdex_contracts.history import callback_row, event_rows
from heimdex_contracts.messages import AnyMessage, Canceled, Completed, Due, Failed
from heimdex_status_store import queries
from heimdex_status_store.projection import job_rows
from tests.integration.status_store.test_queries import history, row
from tests.support.histories import START, Writer

URL = "https://shop.example/hooks"


def ended(how: str, url: str | None = URL) -> list[AnyMessage]:
    """The events of a job that ended so."""
    writer = Writer()
    first = writer.due
    common: dict[str, Any] = {"job_id": first.job_id, "type": first.type, "step": 1, "created_at": START, "at": START}
    last = {
        "completed": Completed(**common, stage="indexing", result={}, progress=100),
        "failed": Failed(**common, stage="extracting", attempt=1, error="oh"),
        "canceled": Canceled(**common),
    }[how]
    return [msgspec.structs.replace(event, callback_url=url) for event in (first, last)]


async def write(connection: asyncpg.Connection, events: list[AnyMessage]) -> Any:
    await queries.record(connection, job_rows(events), event_rows(events))
    return events[-1]


async def tell(connection: asyncpg.Connection, *told: CallbackResult) -> None:
    await queries.record_callbacks(connection, [callback_row(one) for one in told])


async def owed(connection: asyncpg.Connection) -> dict[str, int]:
    """Job id -> tries, read in pages of two."""
    found: dict[str, int] = {}
    after = None
    while page := await queries.owed(connection, after, 2):
        after = page[-1][0]
        for job_id, text, tries in page:
            assert messages.decode_stored(text.encode()).job_id == job_id
            found[job_id] = tries
    return found


@pytest.mark.parametrize("how", ["completed", "failed", "canceled"])
async def test_an_ended_job_with_a_callback_url_is_owed_one_until_the_last_word(
    connection: asyncpg.Connection,
    how: str,
) -> None:
    one, other = await write(connection, ended(how)), await write(connection, ended(how))
    await write(connection, ended(how, url=None))
    assert await owed(connection) == {one.job_id: 0, other.job_id: 0}
    before = await row(connection, one.job_id)
    for tries in (1, 2):
        await tell(connection, CallbackFailed(end=one, tries=tries, at=START, error="no", delay_seconds=5))
    assert await owed(connection) == {one.job_id: 2, other.job_id: 0}
    await tell(
        connection,
        CallbackDelivered(end=one, tries=3, at=START),
        CallbackGivenUp(end=other, tries=1, at=START, error="gone"),
    )
    assert await owed(connection) == {}
    assert await row(connection, one.job_id) == before
    kinds = [entry[3] for entry in await history(connection, one.job_id)][-3:]
    assert kinds == ["callback_failed", "callback_failed", "callback_delivered"]


async def test_a_job_that_runs_again_or_has_not_ended_is_owed_nothing(connection: asyncpg.Connection) -> None:
    failed = await write(connection, ended("failed"))
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
    await write(connection, ended("completed")[:1])
    assert await owed(connection) == {}


async def test_more_owed_than_a_page_are_all_found(connection: asyncpg.Connection) -> None:
    ends = [await write(connection, ended("completed")) for _ in range(7)]
    assert await owed(connection) == {end.job_id: 0 for end in ends}


async def test_a_callback_told_twice_is_one_entry_and_of_a_forgotten_job_none(
    connection: asyncpg.Connection,
) -> None:
    end = await write(connection, ended("completed"))
    stranger = ended("completed")[-1]
    assert isinstance(stranger, Completed)
    told = CallbackDelivered(end=end, tries=1, at=START)
    await tell(connection, told, told, CallbackDelivered(end=stranger, tries=1, at=START))
    await tell(connection, told)
    assert len(await history(connection, end.job_id)) == 3
    assert await history(connection, stranger.job_id) == []
