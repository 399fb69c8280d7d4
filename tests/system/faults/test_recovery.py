"""How long recovery takes: measured and printed (`pytest -rP`), and asserted only as strictly as a slow machine allows.

docs/reliability.md quotes these figures.
"""

import asyncio
import time
from typing import Any

import pytest

from tests.conftest import NewSystem
from tests.support.api import Api
from tests.support.load import Load
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.rows import fetch
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import JOBS, Observer

ROUNDS = 3
#: Four events each.
BACKLOG_JOBS = [400, pytest.param(2500, marks=pytest.mark.full)]
#: How much worse than the promise a machine may be that does other work at the same time.
PATIENCE = 6


@pytest.mark.allows("repeated", "isolated")
async def test_a_killed_workers_job_is_running_again_within_the_ack_wait_and_a_second(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    system.env["HEIMDEX_ACK_WAIT_SECONDS"] = "10"
    system.start_all(stages=STAGES)
    system.start("working")
    await system.ready()
    job_id = await api.submit("gated")
    took = []
    for number in range(1, ROUNDS):
        await eventually(lambda number=number: len(duties.runs(job_id)) == number)
        pid = duties.runs(job_id)[-1][2]
        killed = next(service for service in system.all("working") if service.pid == pid)
        began = time.monotonic()
        killed.kill()
        system.start("working")
        await eventually(lambda number=number: len(duties.runs(job_id)) > number)
        took.append(time.monotonic() - began)
    duties.open_gate()
    await api.wait_until(job_id, "completed")
    print(f"\na killed worker's job ran again after {max(took):.1f} s at most (the ack wait is 10 s)")
    assert max(took) < 11 + PATIENCE


@pytest.mark.allows("nats_killed")
async def test_jobs_are_accepted_again_when_nats_is_back(system: System, nats: Any, database_url: str) -> None:
    system.start_all()
    await system.ready()
    took = []
    async with Load([system.url], per_second=20) as load:
        for _ in range(ROUNDS):
            await load.more(5)
            await asyncio.to_thread(nats.kill)
            refused = load.refused.total()
            await eventually(lambda refused=refused: load.refused.total() > refused)
            await asyncio.to_thread(nats.start)
            began = time.monotonic()
            await load.more(1)
            took.append(time.monotonic() - began)
        await load.stop()
        await load.all_end(database_url)
    print(f"\naccepting again {max(took):.1f} s at most after NATS answered again")
    assert max(took) < 3 + PATIENCE


@pytest.fixture
def own_system(new_system: NewSystem, nats: NatsServer, own_postgres: Any) -> System:
    return new_system(nats.url, own_postgres.url, HEIMDEX_LOG_LEVEL="info")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("jobs", BACKLOG_JOBS)
@pytest.mark.full
async def test_a_backlog_of_thousands_of_events_is_written_when_postgres_is_back(
    own_system: System, nats: NatsServer, own_postgres: Any, jobs: int
) -> None:
    system = own_system
    system.start_all()
    await system.ready()
    async with Api(system.url) as api, Observer(nats.url, "heimdex.jobs.completed.*") as seen:
        await api.wait_until(await api.submit(), "completed")
        await asyncio.to_thread(own_postgres.stop)
        for start in range(0, jobs, 50):
            await asyncio.gather(*(api.submit() for _ in range(min(50, jobs - start))))
        await eventually(lambda: len(seen.seen) == jobs + 1, 200, what="every job has run")
        behind = (await seen.api(f"STREAM.INFO.{JOBS}"))["state"]["messages"]
        await asyncio.to_thread(own_postgres.start)
        began = time.monotonic()
        await eventually(seen.empty, 120, what="the backlog is written")
        took = time.monotonic() - began
        rows = await fetch(own_postgres.url, "SELECT count(*) AS n FROM jobs WHERE status = 'completed'")
        assert rows[0]["n"] == jobs + 1
        # At this level of the logs the auditor does not hear of each attempt.
        assert not await fetch(own_postgres.url, "SELECT FROM job_events WHERE ended_attempt > 1")
    print(f"\na backlog of {behind} events was written {took:.1f} s after Postgres's return")
    assert behind >= 4 * jobs
    assert took < 10 + 5 * PATIENCE
