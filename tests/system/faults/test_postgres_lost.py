"""Fault 7, Postgres: stopped, killed, frozen, locked, emptied. POST keeps working in every one of them."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.conftest import NewSystem
from tests.support.api import Api
from tests.support.ends import published
from tests.support.following import Follower
from tests.support.load import Load, followed_load
from tests.support.other_host import OtherPostgres
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.rows import execute, fetch, freeze, statuses, thaw
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer


@pytest.fixture
def system(new_system: NewSystem, nats: NatsServer, own_postgres: Any) -> System:
    """A system with a Postgres of its own."""
    return new_system(nats.url, own_postgres.url)


@asynccontextmanager
async def faulty(postgres: Any, fault: str) -> AsyncIterator[None]:
    """Inject this fault of Postgres within the block."""
    if fault == "locked":
        connection = await asyncpg.connect(postgres.url)
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
                yield
        finally:
            await connection.close()
    elif fault == "frozen":
        freeze(postgres.pid)
        try:
            yield
        finally:
            thaw(postgres.pid)
    else:
        await asyncio.to_thread(postgres.kill if fault == "killed" else postgres.stop)
        yield
        await asyncio.to_thread(postgres.start)


@pytest.mark.parametrize("fault", [pytest.param("stopped", marks=pytest.mark.full), "killed", "frozen", "locked"])
async def test_post_keeps_working_and_everything_is_recorded_afterwards(
    system: System, own_postgres: Any, nats: NatsServer, fault: str
) -> None:
    await go_through(system, own_postgres, nats, fault, seconds=4)


async def go_through(system: System, own_postgres: Any, nats: NatsServer, fault: str, seconds: float) -> None:
    """Run a load while this fault lasts."""
    async with followed_load(system, newest=6) as (load, follower), Observer(nats.url) as seen:
        async with faulty(own_postgres, fault):
            began = time.monotonic()
            await load.more(30)
            await eventually(lambda: time.monotonic() - began > seconds, what="the fault has lasted")
            # Jobs still finish.
            last = load.accepted[-1]
            await published(seen, [last])
        began = time.monotonic()
        await load.more(5)
        await load.stop()
        ends = await load.all_end(own_postgres.url)
        await eventually(seen.empty)
        assert set(ends.values()) == {"completed"}
    print(f"\n{fault} for {seconds:g} s: everything was recorded {time.monotonic() - began:.1f} s after its end")
    assert not load.refused, "POST needs no Postgres"
    assert follower.slowest < 10, "a GET answers, or says 500, within its time"
    follower.check()


@pytest.mark.parametrize("fault", ["connections", "host"])
async def test_a_connection_that_is_lost_without_being_closed_costs_one_read_and_some_seconds(
    new_system: NewSystem, other_postgres: OtherPostgres, nats: NatsServer, fault: str
) -> None:
    """No packet of the existing connections arrives any more ("connections"), or none at all for a while ("host")."""
    system = new_system(nats.url, other_postgres.url)
    system.start_all()
    await system.ready()
    async with Api(system.url) as api, Observer(nats.url) as seen:
        job_id = await api.submit()
        ended = await api.wait_until(job_id, "completed")
        await eventually(seen.empty)
        others = await asyncio.gather(*(api.get(job_id) for _ in range(8)))  # several connections
        assert others == [ended] * 8
        assert other_postgres.host.lose_connections()
        began = time.monotonic()
        if fault == "host":
            other_postgres.host.disconnect()
        new = await api.submit()
        if fault == "host":
            await eventually(lambda: time.monotonic() - began > 6, what="it is away for longer than is waited for it")
            other_postgres.host.connect()
            began = time.monotonic()

        async def failures_until_right() -> int:
            for failures in range(20):
                response = await api.http.get(f"/jobs/{job_id}")
                if response.status_code == 200:
                    assert response.json() == ended
                    return failures
                assert response.status_code == 500
            raise AssertionError("it never answers again")

        async def recorded() -> float:
            await eventually(lambda: _known(other_postgres.local_url, [new], "completed"))
            return time.monotonic() - began

        failures, seconds = await asyncio.gather(failures_until_right(), recorded())
        await eventually(seen.empty)
        print(f"\n{fault}: {failures} reads failed; recorded again after {seconds:.1f} s")
        assert failures <= 2
        # The time-out of a statement, which would notice it too, is 30 s.
        assert seconds < 20


async def empty_it(postgres: Any, how: str, folder: Path) -> None:
    """Empty the database, as a wrong command or a lost volume does."""
    match how:
        case "truncated":
            await execute(postgres.url, "TRUNCATE jobs, job_events, stream_seen")
        case "jobs-truncated":
            await execute(postgres.url, "TRUNCATE jobs")
        case "dropped":
            await execute(postgres.url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        case "new-cluster":
            await asyncio.to_thread(postgres.stop)
            shutil.rmtree(folder / "postgres" / "data")
            await asyncio.to_thread(postgres.start)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("truncated", marks=pytest.mark.full),
        "jobs-truncated",
        pytest.param("dropped", marks=pytest.mark.full),
        "new-cluster",
    ],
)
async def test_unfinished_jobs_are_recorded_again_after_the_database_was_emptied(
    system: System, own_postgres: Any, nats: NatsServer, scratch: Path, how: str
) -> None:
    duties = Behaviours(scratch / "duties")
    system.env |= duties.env
    system.start_all(stages=STAGES)
    await system.ready()
    async with Api(system.url) as api, Follower([system.url]) as follower, Observer(nats.url) as seen:
        jobs = [await api.submit("gated") for _ in range(5)]
        await eventually(lambda: len(duties.runs()) == 5)
        await eventually(lambda: _known(own_postgres.url, jobs, "processing"), what="Postgres knows them to run")
        follower.add(*jobs)
        # A quiet gap after the loss, and a busy one: new jobs come while the table is empty.
        async with Load([system.url], per_second=10, bodies=[{"type": "quick"}]) as load:
            await load.more(3)
            await empty_it(own_postgres, how, scratch)
            await load.more(10)
            await eventually(lambda: _known(own_postgres.url, jobs), what="the unfinished jobs are rows again")
            assert not load.refused
        duties.open_gate()
        for job_id in jobs:
            await api.wait_until(job_id, "completed")
        await eventually(seen.empty)
        for job_id in jobs:
            assert (await api.get(job_id))["result"]["stages_completed"] == ["working", "resting"]
    follower.check()


async def _known(url: str, jobs: list[str], status: str = "") -> bool:
    try:
        known = await statuses(url, jobs)
    except (asyncpg.PostgresError, OSError):
        return False
    return len(known) == len(jobs) and (not status or set(known.values()) == {status})


async def test_the_progress_of_a_later_attempt_does_not_decrease_while_postgres_is_down(
    system: System, own_postgres: Any, nats: NatsServer, scratch: Path
) -> None:
    duties = Behaviours(scratch / "duties")
    system.env |= {**duties.env, "HEIMDEX_RETRY_BACKOFF_SECONDS": "0.5"}
    system.start_all(stages=STAGES)
    await system.ready()
    async with Api(system.url) as api, Follower([system.url], pause=0.01) as follower, Observer(nats.url) as seen:
        # Its first attempt comes to 80 % of the stage and then fails, its second and last one fails at once.
        job_id = await api.submit("tired")
        follower.add(job_id)
        await eventually(lambda: follower.seen(job_id).get("progress", 0) >= 40, what="a caller sees its progress")
        await asyncio.to_thread(own_postgres.stop)
        try:
            await published(seen, [job_id], "failed")
            asked = follower.asked
            await eventually(lambda: follower.asked > asked + 5, what="it is asked for after its end")
        finally:
            await asyncio.to_thread(own_postgres.start)
        await api.wait_until(job_id, "failed")
        await eventually(seen.empty)
        assert (await api.get(job_id))["progress"] >= 40
    follower.check()


async def test_a_replay_does_not_change_the_rows_of_finished_jobs(
    system: System, own_postgres: Any, nats: NatsServer
) -> None:
    system.start_all()
    await system.ready()
    async with Api(system.url) as api, Observer(nats.url) as seen:
        job_id = await api.submit()
        before = await api.wait_until(job_id, "completed")
        await eventually(seen.empty)
        history = await fetch(own_postgres.url, "SELECT * FROM job_events ORDER BY step, attempt")
        # The mark of the stream that was seen is lost: the store compares everything with everything.
        await execute(own_postgres.url, "TRUNCATE stream_seen")
        await eventually(lambda: fetch(own_postgres.url, "SELECT FROM stream_seen"), what="it has compared")
        assert await api.get(job_id) == before
        assert await fetch(own_postgres.url, "SELECT * FROM job_events ORDER BY step, attempt") == history
        assert await seen.empty()


@pytest.mark.allows("nats_killed")
async def test_a_store_that_waits_for_postgres_records_everything_after_a_restart_of_nats(
    system: System, own_postgres: Any, nats: Any
) -> None:
    system.env["HEIMDEX_MOCK_TIME_SCALE"] = "0.05"
    system.start_all(without=("status-store",))
    await system.ready()
    async with Api(system.url) as api, Observer(nats.url) as seen:
        await asyncio.to_thread(own_postgres.stop)
        store = system.start("status-store")
        await store.wait_log("postgres_waiting")
        await asyncio.to_thread(nats.kill)
        await asyncio.to_thread(nats.start)
        await store.wait_log("nats_reconnected")
        await asyncio.to_thread(own_postgres.start)
        await store.wait_log("ready")
        job_id = await api.submit()
        await api.wait_until_listed([job_id], status="completed")
        await eventually(seen.empty, what="what was recorded is acknowledged")
