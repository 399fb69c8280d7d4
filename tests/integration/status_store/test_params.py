"""Parameters and outputs in a real Postgres: written once, complete, byte for byte, and read only where needed."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import asyncpg
import msgspec
import pytest

from heimdex_contracts import messages, patches
from heimdex_contracts.history import event_rows
from heimdex_contracts.messages import AnyMessage, Due, StageRun
from heimdex_status_store import queries
from heimdex_status_store.projection import job_rows
from tests.support.histories import Writer, due

PARAMS = b'{"source":"https://example.com/\xc3\xa9","size":1.50, "tags" : ["\\u00e9"]}'
OUTPUT = b'{"frames":[1, 2.0],"params":"not these"}'


def large(number: int = 0, size: int = 24 * 1024) -> msgspec.Raw:
    """Return JSON that does not fit into a row, and so is stored in the table's TOAST table."""
    return msgspec.Raw(b'{"text":"%d%b"}' % (number, b"x" * size))


def writer(params: bytes | msgspec.Raw = PARAMS, output: bytes | msgspec.Raw = OUTPUT) -> Writer:
    return Writer(params=msgspec.Raw(params), output=msgspec.Raw(output))


async def write(connection: Any, *events: AnyMessage, refill: bool = False) -> int:
    written = await queries.record(connection, job_rows(events), event_rows(events), refill=refill)
    assert not written.early
    return written.raised


async def row(connection: asyncpg.Connection, job_id: str) -> dict[str, Any]:
    query = "SELECT step, message::text, params::text, outputs::text, result::text FROM jobs WHERE id = $1"
    return dict(await connection.fetchrow(query, job_id))


class Watched:
    """A connection that keeps the arguments of all statements."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self.statements: list[tuple[str, tuple[Any, ...]]] = []

    async def fetch(self, query: str, *arguments: Any) -> Any:
        self.statements.append((query, arguments))
        return await self._connection.fetch(query, *arguments)

    async def execute(self, query: str, *arguments: Any) -> Any:
        self.statements.append((query, arguments))
        return await self._connection.execute(query, *arguments)

    def sent(self, text: str) -> list[bool]:
        """Whether each statement carried this text."""
        sent = [text in str(arguments) for _, arguments in self.statements]
        self.statements.clear()
        return sent


async def test_the_parameters_are_sent_and_written_with_the_first_message_only(connection: asyncpg.Connection) -> None:
    watched, job = Watched(connection), writer()
    job.tick(0.5)
    job.fail_attempt()
    job.finish_stage()
    job.tick(0.5)
    job.cancel()
    for event in job.events:
        await write(watched, event)
        assert watched.sent("https://example.com") == [event is job.events[0]], event
        stored = await row(connection, event.job_id)
        assert stored["params"].encode() == PARAMS
        assert "https" not in stored["message"]
    whole = patches.whole(stored["message"], stored["params"])
    assert messages.decode_stored(whole) == job.events[-1]


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_completed_job_has_its_parameters_and_outputs(connection: asyncpg.Connection, at_once: bool) -> None:
    job = writer()
    while job.finish_stage():
        pass
    for batch in [job.events] if at_once else [[event] for event in job.events]:
        await write(connection, *batch)
    stored = await row(connection, job.due.job_id)
    assert (stored["params"].encode(), stored["message"]) == (PARAMS, None)
    assert msgspec.json.decode(stored["outputs"], type=dict[str, msgspec.Raw]) == {
        "extracting": msgspec.Raw(OUTPUT),
        "analyzing": msgspec.Raw(OUTPUT),
    }
    assert bytes(msgspec.json.decode(stored["result"], type=dict[str, msgspec.Raw])["output"]) == OUTPUT


@pytest.mark.parametrize("first", [1, 2, 3])
async def test_a_row_that_begins_with_a_later_message_has_the_parameters_too(
    connection: asyncpg.Connection, first: int
) -> None:
    watched, job, other = Watched(connection), writer(), Writer()
    while job.finish_stage():
        pass
    # With a job without parameters, which is written at once.
    assert await write(watched, job.events[first], other.due) == 2
    assert watched.sent("https://example.com") == [False, True, True]
    for event in (*job.events[first + 1 :], *job.events):
        await write(watched, event)
    assert sum(watched.sent("https://example.com")) == 1, "that is the repeated first message"
    stored = await row(connection, job.due.job_id)
    assert (stored["params"].encode(), stored["step"]) == (PARAMS, 3)
    assert await connection.fetchval("SELECT count(*) FROM job_events WHERE job_id = $1", job.due.job_id) == 4
    assert (await row(connection, other.due.job_id))["params"] is None


async def written_by_a_store_without_the_column(connection: asyncpg.Connection, event: Due) -> None:
    """Such a store keeps the whole message, as it arrived."""
    await write(connection, event)
    await connection.execute(
        "UPDATE jobs SET params = NULL, message = $2 WHERE id = $1", event.job_id, messages.encode(event).decode()
    )


@pytest.mark.parametrize(
    "then",
    [
        pytest.param(lambda job: job.events[1], id="the next message"),
        pytest.param(lambda job: job.events[0], id="the same message again"),
    ],
)
@pytest.mark.parametrize("refill", [True, False])
async def test_a_row_without_parameters_gets_them(
    connection: asyncpg.Connection, then: Callable[[Writer], AnyMessage], refill: bool
) -> None:
    job = writer()
    job.finish_stage()
    await written_by_a_store_without_the_column(connection, job.events[0])  # type: ignore[arg-type]
    before = await row(connection, job.due.job_id)
    assert patches.whole(before["message"], None) == messages.encode(job.events[0])
    await write(connection, then(job), refill=refill)
    after = await row(connection, job.due.job_id)
    assert after["params"].encode() == PARAMS
    newest = messages.decode_stored(patches.whole(after["message"], after["params"]))
    assert newest == then(job)


async def test_a_refill_writes_the_parameters_with_whatever_message_is_left(connection: asyncpg.Connection) -> None:
    watched, job = Watched(connection), writer()
    job.finish_stage()
    assert await write(watched, job.events[1], refill=True) == 1
    assert watched.sent("https://example.com") == [True]
    stored = await row(connection, job.due.job_id)
    assert messages.decode_stored(patches.whole(stored["message"], stored["params"])) == job.events[1]


async def test_outputs_are_those_of_completed_jobs_and_none_where_no_stage_returned_anything(
    connection: asyncpg.Connection,
) -> None:
    silent, failed, canceled = Writer(params=msgspec.Raw(PARAMS)), writer(), writer()
    for job in (silent, failed, canceled):
        job.finish_stage()
    silent.finish_stage()
    silent.finish_stage()
    failed.fail()
    canceled.cancel()
    for job in (silent, failed, canceled):
        for event in job.events:
            await write(connection, event)
        stored = await row(connection, job.due.job_id)
        assert (stored["outputs"], stored["params"].encode()) == (None, PARAMS)
        if job is not silent:
            kept = messages.decode_stored(patches.whole(stored["message"], stored["params"]))
            assert bytes(kept.finished[0].output) == OUTPUT, "a retry of the failed stage needs it"


async def toast(connection: asyncpg.Connection) -> dict[str, Any]:
    name = await connection.fetchval("SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = 'jobs'::regclass")
    rows = await connection.fetch(f"SELECT DISTINCT chunk_id::text, xmin::text FROM {name}")
    return {chunk["chunk_id"]: chunk["xmin"] for chunk in rows}


async def test_neither_a_tick_nor_a_hand_over_writes_the_parameters_again(connection: asyncpg.Connection) -> None:
    job = writer(large(), large(1))
    await write(connection, job.due)
    params = await toast(connection)
    assert len(params) == 1, "the message is short without them"
    job.finish_stage()
    await write(connection, job.events[-1])
    with_output = await toast(connection)
    assert params.items() < with_output.items()
    assert len(with_output) == 2, "the message with the first stage's output"
    for fraction in (0.2, 0.4, 0.6):
        job.tick(fraction)
        await write(connection, job.events[-1])
    job.fail_attempt()
    await write(connection, job.events[-1])
    assert await toast(connection) == with_output, "an attempt changes neither"
    assert (await row(connection, job.due.job_id))["step"] == 1
    job.finish_stage()
    job.finish_stage()
    await write(connection, job.events[-2])
    await write(connection, job.events[-1])
    assert params.items() < (await toast(connection)).items()


async def blocks_read(connection: asyncpg.Connection) -> int:
    """How many blocks of the table's TOAST table have been read so far, from the disk or the cache."""
    await connection.execute("SELECT pg_stat_force_next_flush()")
    await connection.execute("SELECT pg_stat_clear_snapshot()")
    return int(
        await connection.fetchval(
            "SELECT toast_blks_read + toast_blks_hit + tidx_blks_read + tidx_blks_hit"
            " FROM pg_statio_user_tables WHERE relname = 'jobs'"
        )
    )


async def test_a_page_of_unfinished_jobs_reads_neither_messages_nor_parameters(connection: asyncpg.Connection) -> None:
    ids = []
    for _ in range(4):
        events: list[AnyMessage] = []
        for _ in range(500):
            job = due(params=large())
            finished = (StageRun("extracting", 1, job.at, job.at, 1.0, large(1)),)
            events.append(msgspec.structs.replace(job, finished=finished))
            ids.append(job.job_id)
        await write(connection, *events)
    await connection.execute("ANALYZE jobs")
    before, after, listed, pages = await blocks_read(connection), None, [], []
    more = True
    while more:
        page, more = await queries.unfinished(connection, after, timedelta(0), 500, 4_000_000)
        pages.append(len(page))
        listed += [job.job_id for job in page]
        after = page[-1].job_id
    assert listed == sorted(ids), "each job once, although a page ends at 4 MB"
    assert len(set(pages[:-1])) == 1
    assert 50 < pages[0] < 125
    assert await blocks_read(connection) == before
    ((first,), more) = await queries.unfinished(connection, None, timedelta(0), 500, 10)
    assert (first.job_id, more) == (listed[0], True), "a page has at least one job"
    gone = await queries.unfinished_row(connection, ids[0])
    assert gone is not None
    assert gone.params == bytes(large()).decode()
    assert await blocks_read(connection) > before
