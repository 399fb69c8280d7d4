"""The refused steps of jobs in Postgres: the first refusal counts, and a further one writes nothing."""

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from heimdex_contracts import messages
from heimdex_contracts.history import event_rows
from heimdex_contracts.messages import Refusal
from heimdex_status_store import queries
from heimdex_status_store.database import Database
from heimdex_status_store.projection import job_rows
from heimdex_status_store.queries import RefusedStep
from heimdex_status_store.refusals import FRESH_SECONDS, REFUSED_SECONDS, Refusals
from tests.support.histories import START, Writer
from tests.support.recording_logger import RecordingLogger


class CountingDatabase(Database):
    """Counts the statements that it runs."""

    calls = 0

    async def run(self, work: Callable[[asyncpg.Connection], Awaitable[Any]], timeout: float = 30.0) -> Any:
        self.calls += 1
        return await super().run(work, timeout)


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[CountingDatabase]:
    database = CountingDatabase(database_url, RecordingLogger())
    yield database
    await database.close()


def refused(job_id: str, step: int = 0, minutes: int = 0) -> RefusedStep:
    return RefusedStep(job_id, step, "film", "mix", START + timedelta(minutes=minutes))


async def add(database: Database, *steps: RefusedStep) -> list[tuple[RefusedStep, bool]]:
    return await database.run(lambda connection: queries.record_refusals(connection, steps))


async def rows(database: Database) -> list[RefusedStep]:
    return await database.run(lambda connection: queries.refused_page(connection, None, 100))


async def record(database: Database, events: list[Any]) -> None:
    await database.run(lambda connection: queries.record(connection, job_rows(events), event_rows(events)))


async def test_the_first_refusal_of_a_step_counts_and_a_later_step_begins_anew(database: Database) -> None:
    job_id = str(uuid.uuid4())
    assert await add(database, refused(job_id)) == [(refused(job_id), False)]
    assert await add(database, refused(job_id, minutes=9)) == [(refused(job_id), False)]
    assert await add(database, refused(job_id, 2, minutes=10)) == [(refused(job_id, 2, minutes=10), False)]
    assert await add(database, refused(job_id, 1, minutes=11)) == [(refused(job_id, 1, minutes=11), False)]
    assert await rows(database) == [refused(job_id, 2, minutes=10)]


async def test_a_job_that_went_on_is_not_added_and_its_row_is_deleted(database: Database) -> None:
    waiting, gone_on, ended = Writer(), Writer(), Writer()
    ids = [writer.due.job_id for writer in (waiting, gone_on, ended)]
    await record(database, [writer.due for writer in (waiting, gone_on, ended)])
    await add(database, *map(refused, ids), refused(str(uuid.uuid4())))
    gone_on.finish_stage()
    ended.fail()
    await record(database, [*gone_on.events, *ended.events])
    again = await add(database, *map(refused, ids))
    assert {step.job_id: went for step, went in again} == dict(zip(ids, (False, True, True), strict=True))
    cleaned = await database.run(
        lambda connection: queries.clean_up_refusals(connection, None, timedelta(days=365 * 99), 100)
    )
    assert {job_id: removed for job_id, _, removed in cleaned if job_id in ids} == dict(
        zip(ids, (False, True, True), strict=True)
    )
    assert {step.job_id for step in await rows(database)} > {ids[0]}
    cleaned = await database.run(lambda connection: queries.clean_up_refusals(connection, None, timedelta(days=7), 100))
    assert sum(removed for *_, removed in cleaned) == 1, "that of a job that has no row"
    assert await rows(database) == [refused(ids[0])]


async def test_a_further_refusal_of_many_jobs_writes_and_reads_nothing(database: CountingDatabase) -> None:
    log = RecordingLogger()
    refusals = Refusals(None, None, database, 3600.0, log)  # type: ignore[arg-type]  # no job is ended here
    await refusals._load()
    jobs = [
        Refusal(job_id=str(uuid.uuid4()), type="film", step=0, stage="mix", at=messages.now(), delay_seconds=5)
        for _ in range(1200)
    ]

    async def arrive(*arrivals: Refusal) -> int:
        before = database.calls
        for refusal in arrivals:
            subject = f"heimdex.refusals.{refusal.stage}.{refusal.job_id}"
            refusals._on_refusal(subject.encode(), b"", messages.encode(refusal), b"")
        await refusals._write()
        await refusals._end()
        return database.calls - before

    assert await arrive(*jobs, *jobs) == 3, "500 in a statement"
    assert await arrive(*jobs) == 0
    assert refusals.counts() == [{"type": "film", "stage": "mix", "jobs": 1200}]
    assert len(log.of("jobs_refused")) == 1
    assert all(refusals.is_refused(job.job_id, 0) for job in jobs)
    after_restart = Refusals(None, None, database, 3600.0, RecordingLogger())  # type: ignore[arg-type]
    await after_restart._load()
    assert after_restart.counts() == refusals.counts()
    later = msgspec.structs.replace(jobs[0], step=1)
    assert await arrive(later) == 1
    assert refusals.counts() == [{"type": "film", "stage": "mix", "jobs": 1200}]


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"job_id": 7}'])
async def test_what_is_no_refusal_is_ignored(database: CountingDatabase, data: bytes) -> None:
    refusals = Refusals(None, None, database, 3600.0, RecordingLogger())  # type: ignore[arg-type]
    refusals._on_refusal(b"heimdex.refusals.mix.x", b"", data, b"")
    await refusals._write()
    assert database.calls == 0


async def arrive(refusals: Refusals, job_id: str) -> None:
    """Let a worker refuse this job, and write it."""
    refusal = Refusal(job_id=job_id, type="film", step=0, stage="mix", at=messages.now(), delay_seconds=5)
    refusals._on_refusal(f"heimdex.refusals.mix.{job_id}".encode(), b"", messages.encode(refusal), b"")
    await refusals._write()


async def test_after_a_long_silence_the_next_refusal_of_a_job_is_its_first(database: CountingDatabase) -> None:
    refusals = Refusals(None, None, database, 3600.0, RecordingLogger())  # type: ignore[arg-type]  # no job is ended
    job_id = str(uuid.uuid4())
    await add(database, refused(job_id))
    await refusals._load()
    await refusals._forget_silent(time.monotonic() + REFUSED_SECONDS - 10)
    assert refusals.is_refused(job_id, 0), "a refusal's delay is shorter than this"
    await refusals._forget_silent(time.monotonic() + REFUSED_SECONDS + 1)
    assert not refusals.is_refused(job_id, 0)
    assert job_id not in {row.job_id for row in await rows(database)}
    await arrive(refusals, job_id)
    (row,) = [row for row in await rows(database) if row.job_id == job_id]
    assert row.first_at > START, "the hour begins anew"


async def test_a_refusal_that_waited_for_long_ends_no_job(database: CountingDatabase) -> None:
    refusals = Refusals(None, None, database, 0.0, RecordingLogger())  # type: ignore[arg-type]  # it must not look
    await refusals._load()
    job_id = str(uuid.uuid4())
    await arrive(refusals, job_id)
    (expired,) = refusals._expired
    refusals._expired[0] = (expired[0] - FRESH_SECONDS, *expired[1:])
    before = database.calls
    await refusals._end()  # without a publisher, an end of the job would raise
    assert (database.calls, len(refusals._expired)) == (before, 0)
    assert refusals.is_refused(job_id, 0)
