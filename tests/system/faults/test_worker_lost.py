"""Fault 2: a job that kills its worker on every attempt fails alone; its neighbours complete."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.support.api import Api
from tests.support.ends import published
from tests.support.following import Follower
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.rows import statuses
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer

pytestmark = pytest.mark.allows("repeated", "isolated", "worker_lost")

NEIGHBOURS = 10
#: Enough for the variants: each costs an interpreter of its own once it is suspected.
FEW = 3


@asynccontextmanager
async def supervised(system: System, name: str) -> AsyncIterator[list[int]]:
    """Run one process of this service, restarted each time it dies, as Docker does; yields its exit codes."""
    codes: list[int] = []

    async def supervise() -> None:
        while True:
            service = system.start(name)
            codes.append(await service.ended(3600))

    task = asyncio.create_task(supervise())
    try:
        yield codes
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def check_runs(duties: Behaviours, job_id: str) -> None:
    """Check that a job ran no more often than its policy allows.

    A first delivery that kills its worker before the first tick leaves no trace: that one is not counted.
    """
    runs = duties.runs(job_id)
    assert len(runs) <= 5, runs
    assert len([run for run in runs if run[1] > 1]) <= 3, runs


async def test_a_job_that_kills_workers_fails_with_worker_lost_and_its_neighbours_complete(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    system.start_all(stages=STAGES, without=("working",))
    await system.ready()
    async with Observer(nats.url) as seen, Follower([system.url]) as follower:
        killer = await api.submit("killer")
        neighbours = [await api.submit("steady") for _ in range(NEIGHBOURS)]
        follower.add(killer, *neighbours)
        async with supervised(system, "working") as deaths:
            job = await api.wait_until(killer, "failed")
            for job_id in neighbours:
                await api.wait_until(job_id, "completed")
        await eventually(seen.empty)
    follower.check()
    assert "working" in job["error"]
    assert "worker lost" in job["error"]
    assert job["stage"] == "working"
    check_runs(duties, killer)
    # Its first two attempts take the worker down; from the third attempt on it can only end itself.
    assert deaths in ([-9, -9], [-9, -9, -9])
    history = await api.history(killer)
    assert [(entry["event"], entry["ended"]["attempt"]) for entry in history if entry["ended"]] == [
        ("attempt_lost", 1),
        ("attempt_lost", 2),
        ("attempt_failed", 3),
        ("failed", 4),
    ]


@pytest.mark.full
async def test_neighbours_that_share_a_worker_with_several_killers_complete(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    system.start_all(stages=STAGES, without=("working",))
    await system.ready()
    async with Observer(nats.url) as seen:
        killers = []
        neighbours = []
        for _ in range(3):
            neighbours += [await api.submit("steady") for _ in range(2)]
            killers.append(await api.submit("killer"))
        async with supervised(system, "working"):
            for job_id in killers:
                assert "worker lost" in (await api.wait_until(job_id, "failed"))["error"]
            for job_id in neighbours:
                await api.wait_until(job_id, "completed")
        await eventually(seen.empty)
    for job_id in killers:
        check_runs(duties, job_id)


@pytest.mark.full
async def test_a_job_that_kills_workers_fails_while_the_status_store_is_down(
    system: System, api: Api, nats: NatsServer, duties: Behaviours, database_url: str
) -> None:
    system.start_all(stages=STAGES, without=("working",))
    await system.ready()
    await system["status-store"].terminate()
    async with Observer(nats.url) as seen:
        killer = await api.submit("killer")
        neighbours = [await api.submit("steady") for _ in range(FEW)]
        async with supervised(system, "working"):
            await published(seen, [killer], "failed")
            await published(seen, neighbours)
            system.start("status-store")
            await eventually(seen.empty, what="all is recorded")
        expected = {killer: "failed", **dict.fromkeys(neighbours, "completed")}
        assert await statuses(database_url, list(expected)) == expected
        assert "worker lost" in (await api.get(killer))["error"]


@pytest.mark.full
async def test_a_job_that_kills_workers_fails_after_a_time_without_a_worker(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    system.start_all(stages=STAGES, without=("working",))
    first = system.start("working")
    await system.ready()
    async with Observer(nats.url) as seen:
        killer = await api.submit("killer")
        neighbours = [await api.submit("steady") for _ in range(FEW)]
        assert await first.ended() == -9
        # Nobody works, and the job's ack wait passes: the broker would redeliver it, and no worker is there to hear.
        lapsed = asyncio.get_running_loop().time() + 3 * float(system.env["HEIMDEX_ACK_WAIT_SECONDS"] or 0)
        await eventually(lambda: asyncio.get_running_loop().time() > lapsed, what="three ack waits pass")
        assert (await api.get(killer))["status"] in {"pending", "processing"}
        async with supervised(system, "working"):
            assert "worker lost" in (await api.wait_until(killer, "failed"))["error"]
            for job_id in neighbours:
                await api.wait_until(job_id, "completed")
        await eventually(seen.empty)
