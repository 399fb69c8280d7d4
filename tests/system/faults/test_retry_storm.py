"""Fault 5: many jobs that fail at one stage, with back-off, beside healthy ones. `make chaos` makes 3,000 of them."""

import asyncio
import statistics
import time
from collections import Counter

import pytest

from tests.support.api import Api
from tests.support.ends import published
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.rows import fetch
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer

HEALTHY = 30
BACKOFF = (2.0, 2.0)


async def submit(api: Api, kind: str, count: int) -> list[str]:
    """Submit this many jobs, forty at a time. Returns their ids."""
    job_ids: list[str] = []
    for start in range(0, count, 40):
        job_ids += await asyncio.gather(*(api.submit(kind) for _ in range(min(40, count - start))))
    return job_ids


async def seconds_to_complete(api: Api, seen: Observer, count: int) -> list[float]:
    """Return the seconds of healthy jobs, one after the other, from the POST to the terminal event."""
    seconds = []
    for _ in range(count):
        began = time.monotonic()
        job_id = await api.submit("quick")
        await published(seen, [job_id])
        seconds.append(time.monotonic() - began)
    return seconds


@pytest.mark.full
async def test_jobs_in_back_off_delay_no_healthy_job_and_have_as_many_attempts_as_their_policy_allows(
    system: System, api: Api, nats: NatsServer, duties: Behaviours, database_url: str
) -> None:
    await fail(300, system, api, nats, duties, database_url)


async def fail(
    failing_jobs: int, system: System, api: Api, nats: NatsServer, duties: Behaviours, database_url: str
) -> None:
    """Let this many jobs fail at one stage, on every attempt, while healthy ones pass through it."""
    system.env["HEIMDEX_RETRY_BACKOFF_SECONDS"] = ",".join(map(str, BACKOFF))
    system.start_all(stages=STAGES)
    await system.ready()
    async with Observer(nats.url, "heimdex.jobs.*.*") as seen:
        alone = await seconds_to_complete(api, seen, HEALTHY)
        failing = await submit(api, "raiser", failing_jobs)
        beside = await seconds_to_complete(api, seen, HEALTHY)
        undone = sum(not seen.subjects("heimdex.jobs", job_id)[1:] for job_id in failing[-100:])

        async def all_failed() -> bool:
            rows = await fetch(database_url, "SELECT count(*) AS n FROM jobs WHERE status = 'failed'")
            return bool(rows[0]["n"] == failing_jobs)

        await eventually(all_failed, 300, what="every failing job has failed")
        await eventually(seen.empty, 60)
    tried = Counter(job_id for job_id, _, _ in duties.runs())
    assert {tried[job_id] for job_id in failing} == {1 + len(BACKOFF)}
    worst = await fetch(database_url, "SELECT max(ended_attempt) AS n FROM job_events WHERE ended_stage = 'working'")
    assert worst[0]["n"] == 1 + len(BACKOFF)
    print(
        f"\n{failing_jobs} failing jobs: a healthy one took {1000 * statistics.median(alone):.0f} ms alone and "
        f"{1000 * statistics.median(beside):.0f} ms beside them (the slowest {1000 * max(beside):.0f} ms; "
        f"{undone} of the last 100 failing ones were still being retried)"
    )
    # A fair share on any machine: far less than the back-off that the others wait out.
    assert statistics.median(beside) < sum(BACKOFF)
