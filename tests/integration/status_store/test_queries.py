"""Writes to a real Postgres: any order and repetition of a run's events gives the same row and the same history."""

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from functools import reduce
from typing import Any

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heimdex_contracts import messages, patches
from heimdex_contracts.history import event_rows
from heimdex_contracts.lifecycle import merge, snapshot
from heimdex_contracts.messages import (
    DEFAULT_TENANT,
    NOTHING,
    AnyMessage,
    AttemptFailed,
    Completed,
    JobMessage,
    Progress,
)
from heimdex_gateway.jobs.repository import Database
from heimdex_status_store import queries, recorder
from heimdex_status_store.database import migrate
from heimdex_status_store.projection import job_rows
from tests.support.histories import Writer, new_id, run_of_a_job, shuffled

COLUMNS = (
    "type, run, step, attempt, progress, status, stage, result::text, error, created_at, updated_at, params::text,"
    " outputs::text"
)
#: Of a job, and of each of its stages.
JSON = st.sampled_from([NOTHING, msgspec.Raw(b'{"a" : 1.50}'), msgspec.Raw(b'["' + b"x" * 9000 + b'"]')])

_REAL_POSTGRES = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


async def write(connection: asyncpg.Connection, events: Iterable[AnyMessage]) -> int:
    """Record one batch. Returns how many rows of jobs changed."""
    batch = list(events)
    return (await queries.record(connection, job_rows(batch), event_rows(batch))).raised


async def row(connection: asyncpg.Connection, job_id: str) -> dict[str, Any] | None:
    record = await connection.fetchrow(f"SELECT {COLUMNS} FROM jobs WHERE id = $1", job_id)
    return dict(record) if record else None


async def history(connection: asyncpg.Connection, job_id: str) -> list[tuple[Any, ...]]:
    records = await connection.fetch("SELECT * FROM job_events WHERE job_id = $1 ORDER BY step, attempt", job_id)
    return [tuple(entry)[1:] for entry in records]


def of_another_job(events: list[AnyMessage]) -> list[AnyMessage]:
    job_id = new_id()
    return [msgspec.structs.replace(event, job_id=job_id) for event in events]


@_REAL_POSTGRES
@given(data=st.data())
def test_any_order_repetition_and_batching_of_a_run_gives_the_same_row_and_history(
    database_url: str, data: st.DataObject
) -> None:
    in_order = of_another_job(data.draw(run_of_a_job(params=data.draw(JSON), output=data.draw(JSON))))
    mixed = of_another_job(data.draw(shuffled(in_order)))
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=len(mixed), max_size=len(mixed)))

    async def check() -> None:
        connection = await asyncpg.connect(database_url)
        try:
            await migrate(connection)
            for event in in_order:
                await write(connection, [event])
            rest = mixed
            for size in sizes:
                batch, rest = rest[:size], rest[size:]
                if batch:
                    await write(connection, batch)
            one, other = in_order[0].job_id, mixed[0].job_id
            assert await row(connection, other) == await row(connection, one)
            assert await history(connection, other) == await history(connection, one)
        finally:
            await connection.close()

    asyncio.run(check())


@_REAL_POSTGRES
@given(data=st.data())
def test_an_unfinished_run_keeps_its_newest_message_in_whatever_order_events_arrive(
    database_url: str, data: st.DataObject
) -> None:
    """Record as the status store does: an attempt event is redelivered until its hand-over is recorded."""
    drawn = data.draw(run_of_a_job(ended=False, params=data.draw(JSON), output=data.draw(JSON)))
    in_order = of_another_job(drawn)
    waiting = data.draw(st.permutations(in_order))
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=len(waiting), max_size=len(waiting)))

    async def check() -> None:
        connection = await asyncpg.connect(database_url)
        try:
            await migrate(connection)
            rest = list(waiting)
            for size in [*sizes, *sizes, 1000, 1000]:
                batch, rest = rest[:size], rest[size:]
                if not batch:
                    continue
                recorded = await recorder.write(connection, batch, list(map(messages.encode, batch)))
                rest += [
                    event
                    for event in batch
                    if isinstance(event, Progress | AttemptFailed)
                    and (event.job_id in recorded.early or (event.job_id, event.step) in recorded.ahead)
                ]
            assert not rest, "nothing comes again for ever"
            merged = reduce(merge, map(snapshot, in_order))
            newest = max((event for event in in_order if isinstance(event, JobMessage)), key=lambda event: event.step)
            record = await connection.fetchrow(
                "SELECT step, attempt, status, message::text, params::text FROM jobs WHERE id = $1", in_order[0].job_id
            )
            assert (record["step"], record["attempt"], record["status"]) == (merged.step, merged.attempt, merged.status)
            kept = None if isinstance(newest, Completed) else newest
            stored = patches.whole(record["message"], record["params"]) if record["message"] else None
            assert (messages.decode_stored(stored) if stored else None) == kept
        finally:
            await connection.close()

    asyncio.run(check())


@pytest.mark.containers
async def test_the_row_is_the_merge_of_a_jobs_events(connection: asyncpg.Connection) -> None:
    writer = Writer()
    writer.tick(0.4)
    writer.fail_attempt()
    writer.tick(0.6)
    writer.finish_stage()
    writer.tick(0.2)
    for end in (writer.fail, None):
        if end:
            end()
        for event in writer.events:
            await write(connection, [event])
        merged = reduce(merge, map(snapshot, writer.events))
        record = await row(connection, writer.due.job_id)
        assert record is not None
        for name in ("run", "step", "progress", "status", "stage", "error", "created_at", "updated_at"):
            assert record[name] == getattr(merged, name), name


async def test_a_replay_changes_nothing_and_counts_as_no_change(connection: asyncpg.Connection) -> None:
    writer = Writer()
    writer.finish_stage()
    assert await write(connection, writer.events) == 1
    before = await row(connection, writer.due.job_id)
    assert await write(connection, writer.events) == 0
    assert await write(connection, reversed(writer.events)) == 0
    assert await row(connection, writer.due.job_id) == before


async def test_a_tick_with_the_same_percent_moves_updated_at(connection: asyncpg.Connection) -> None:
    """While Postgres is down, GET returns the stream's time; Postgres must not return an older one afterwards."""
    writer = Writer()
    writer.tick(0.5)
    writer.tick(0.5)
    for event in writer.events:
        await write(connection, [event])
    record = await row(connection, writer.due.job_id)
    assert record is not None
    assert record["updated_at"] == writer.events[-1].at


async def test_a_tick_alone_creates_no_row_and_a_tick_of_another_step_changes_none(
    connection: asyncpg.Connection,
) -> None:
    writer = Writer()
    writer.finish_stage()
    writer.tick(0.5)
    submitted, _, tick = writer.events
    await write(connection, [tick])
    assert await row(connection, writer.due.job_id) is None
    await write(connection, [submitted])
    before = await row(connection, writer.due.job_id)
    await write(connection, [tick])
    assert await row(connection, writer.due.job_id) == before


async def test_an_old_runs_events_do_not_touch_a_retried_jobs_row(connection: asyncpg.Connection) -> None:
    first = Writer()
    first.tick(0.9)
    first.fail()
    second = Writer(first.due.job_id, step=2, run=2)
    await write(connection, [*first.events[:1], *second.events])
    before = await row(connection, first.due.job_id)
    assert before is not None
    assert (before["run"], before["status"], before["progress"]) == (2, "pending", 0)
    await write(connection, first.events)
    assert await row(connection, first.due.job_id) == before


async def test_the_row_of_an_unfinished_job_keeps_its_message_and_that_of_a_completed_one_does_not(
    connection: asyncpg.Connection,
) -> None:
    writer = Writer()
    writer.finish_stage()
    writer.tick(0.5)

    async def kept() -> Any:
        return await connection.fetchval("SELECT message->>'stage' FROM jobs WHERE id = $1", writer.due.job_id)

    for event in writer.events:
        await write(connection, [event])
    assert await kept() == "analyzing"
    await write(connection, [writer.events[0]])
    assert await kept() == "analyzing"
    while writer.finish_stage():
        pass
    await write(connection, writer.events)
    assert await kept() is None


async def test_a_batch_of_many_jobs_is_one_row_each(connection: asyncpg.Connection) -> None:
    writers = [Writer() for _ in range(500)]
    for writer in writers:
        writer.finish_stage()
    assert await write(connection, [event for writer in writers for event in writer.events]) == 500
    assert await connection.fetchval("SELECT count(*) FROM jobs WHERE stage = 'analyzing'") == 500
    assert await connection.fetchval("SELECT count(*) FROM job_events") == 1000


async def test_the_gateways_view_shows_a_job_as_its_snapshot(connection: asyncpg.Connection, database_url: str) -> None:
    writer = Writer()
    while writer.finish_stage():
        pass
    await write(connection, writer.events)
    gateway = Database(database_url)
    try:
        merged = reduce(merge, map(snapshot, writer.events))
        # What the stages returned is read only where it is asked for.
        shown = msgspec.structs.replace(merged, finished=None)
        assert await gateway.job(writer.due.job_id, DEFAULT_TENANT) == shown
        assert await gateway.job(new_id(), DEFAULT_TENANT) is None
    finally:
        await gateway.close()


async def test_a_row_has_the_tenant_of_the_first_recorded_message(connection: asyncpg.Connection) -> None:
    for first in range(3):
        writer = Writer()
        writer.fail_attempt()
        writer.finish_stage()
        events = [msgspec.structs.replace(event, tenant="acme") for event in writer.events]
        await write(connection, events[first:])
        await write(connection, events)
        assert await connection.fetchval("SELECT tenant FROM job_status WHERE id = $1", writer.due.job_id) == "acme", (
            first
        )


async def test_pruning_deletes_old_finished_jobs_of_every_tenant_and_type_and_no_others(
    connection: asyncpg.Connection,
) -> None:
    kept = set()
    for number in range(60):
        writer = Writer()
        if number % 4:
            writer.fail()
        fields = {"tenant": f"tenant-{number % 3}", "type": f"type-{number % 5}"}
        await write(connection, [msgspec.structs.replace(event, **fields) for event in writer.events])
        young = number % 7 == 0
        if young or number % 4 == 0:
            kept.add(writer.due.job_id)
        if young:
            await connection.execute("UPDATE jobs SET updated_at = now() WHERE id = $1", writer.due.job_id)
    pruned = 0
    while count := await queries.prune(connection, timedelta(days=1), 7):
        assert count <= 7
        pruned += count
    assert pruned == 60 - len(kept)
    for table, column in (("jobs", "id"), ("job_events", "job_id")):
        left = await connection.fetch(f"SELECT DISTINCT {column}::text FROM {table}")
        assert {row[0] for row in left} == kept


async def test_the_reconciler_sees_unfinished_jobs_written_with_a_clock_ahead(connection: asyncpg.Connection) -> None:
    seconds = {"rested": -100, "just written": -1, "just written, a little ahead": 1, "far ahead": 300}
    jobs = {}
    for name, ahead in seconds.items():
        writer = Writer()
        await write(connection, writer.events)
        jobs[writer.due.job_id] = name
        new = "UPDATE jobs SET updated_at = now() + $2 WHERE id = $1"
        await connection.execute(new, writer.due.job_id, timedelta(seconds=ahead))

    async def unfinished(rest: timedelta | None) -> set[str]:
        page, more = await queries.unfinished(connection, None, rest, 10, queries.UNFINISHED_BYTES)
        assert not more
        return {jobs[row.job_id] for row in page}

    assert await unfinished(None) == set(seconds)
    assert await unfinished(timedelta(seconds=60)) == {"rested", "far ahead"}


@pytest.mark.containers
async def test_two_stores_at_once_never_deadlock_and_agree(database_url: str, connection: asyncpg.Connection) -> None:
    writers = [Writer() for _ in range(60)]
    for writer in writers:
        writer.tick(0.5)
        writer.finish_stage()
        writer.finish_stage()
    events = [event for writer in writers for event in writer.events]
    other = await asyncpg.connect(database_url)
    try:
        for start in range(0, 60, 7):
            turned = events[start:] + events[:start]
            await asyncio.gather(write(connection, turned), write(other, reversed(turned)))
    finally:
        await other.close()
    assert await connection.fetchval("SELECT count(*) FROM jobs WHERE stage = 'indexing'") == 60
    assert await connection.fetchval("SELECT count(*) FROM job_events") == 180
