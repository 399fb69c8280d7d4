"""A power failure under a nats-server that does not flush each message: it restarts with an earlier state.

Played with copies: the server's files of an earlier moment take the place of the newer ones while it is down.
"""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NewSystem
from tests.support.api import Api
from tests.support.following import Follower
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.rows import statuses
from tests.support.servers import on_containers
from tests.support.services import LAUNCHERS, System
from tests.support.waiting import eventually
from tests.support.watching import JOBS, Observer

pytestmark = pytest.mark.skipif(on_containers(), reason="the server's files are in its container")

FEW = 5


@pytest.fixture
def system(new_system: NewSystem, nats: Any, own_postgres: Any) -> System:
    return new_system(nats.url, own_postgres.url, TEST_STEADY_SECONDS="4")


class Power:
    """`remember` stores the state of a moment; after `fail` the server continues from it."""

    def __init__(self, nats: Any, folder: Path) -> None:
        self._nats = nats
        self._store = nats.directory / "jetstream"
        self._then = folder / "then"

    async def remember(self) -> None:
        await asyncio.to_thread(self._nats.kill)
        shutil.copytree(self._store, self._then)
        await asyncio.to_thread(self._nats.start)

    async def fail(self) -> None:
        await asyncio.to_thread(self._nats.kill)
        shutil.rmtree(self._store)
        shutil.copytree(self._then, self._store)
        await asyncio.to_thread(self._nats.start)


@pytest.fixture
def power(nats: Any, scratch: Path) -> Power:
    return Power(nats, scratch)


async def submit(api: Api, kind: str, count: int) -> list[str]:
    """Submit this many jobs, as soon as the gateway accepts again. Returns their ids."""
    job_ids: list[str] = []
    while len(job_ids) < count:
        response = await api.http.post("/jobs", json={"type": kind})
        if response.status_code == 202:
            job_ids.append(response.json()["job_id"])
    return job_ids


async def last_sequence(seen: Observer) -> int:
    return int((await seen.api(f"STREAM.INFO.{JOBS}"))["state"]["last_seq"])


@pytest.mark.allows("nats_killed", "restored", "stray")
async def test_a_worker_settles_no_new_job_with_deliveries_from_before_the_power_failure(
    system: System, nats: Any, duties: Behaviours, power: Power, own_postgres: Any
) -> None:
    system.start_all(stages=STAGES, without=("status-store",))
    system.start("status-store", launcher=LAUNCHERS / "store_that_sweeps_soon.py")
    await system.ready()
    async with Api(system.url) as api, Observer(nats.url) as seen, Follower([system.url]) as follower:
        kept = await submit(api, "gated", 1)
        await eventually(lambda: duties.runs(kept[0]), what="a job runs that the server will remember")
        await power.remember()
        lost = await submit(api, "gated", FEW)
        await eventually(lambda: len(duties.runs()) == 1 + FEW, what="all run")
        await eventually(lambda: known(own_postgres, lost), what="Postgres knows them")
        before = await last_sequence(seen)
        await power.fail()
        new = await submit(api, "steady", 2 * FEW)
        follower.add(*kept, *lost, *new)
        assert await last_sequence(seen) >= before, "their sequences are given anew"
        await eventually(lambda: all(duties.runs(job_id) for job_id in new), what="the new ones run")
        # The attempts from before the failure end first, and their results are dropped.
        duties.open_gate()
        for job_id in (*kept, *new, *lost):
            await api.wait_until(job_id, "completed", timeout=60)
        await eventually(seen.empty)
    assert [len(duties.runs(job_id)) for job_id in (*kept, *new)] == [1] * (1 + 2 * FEW)
    follower.check()


async def known(postgres: Any, jobs: list[str]) -> bool:
    return len(await statuses(postgres.url, jobs)) == len(jobs)
