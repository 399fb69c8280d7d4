"""POST /jobs/retry when the limit of unfinished jobs allows only some of the jobs."""

import asyncio

from tests.support.api import Api
from tests.support.pipelines.scripted import STAGES, Script
from tests.support.services import System

ROOM = 10


async def test_a_retry_of_many_runs_as_many_jobs_as_the_limit_allows_and_counts_them(
    scripted: System, api: Api, script: Script
) -> None:
    script.write("preparing", "permanent")
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    jobs = await asyncio.gather(*(api.submit("scripted") for _ in range(3 * ROOM)))
    await api.wait_until_listed(jobs, status="failed")
    scripted["preparing"].kill()  # what runs again stays so
    await scripted["gateway"].terminate()
    gateway = scripted.start("gateway", {"HEIMDEX_MAX_PENDING_JOBS": str(ROOM)})
    await gateway.wait_log("ready")
    retried = 0
    while (answer := await api.http.post("/jobs/retry?status=failed")).status_code == 200:
        assert answer.json()["retried"] > 0
        assert answer.json()["more"]
        retried += answer.json()["retried"]
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert retried == ROOM
    statuses = [(await api.get(job_id))["status"] for job_id in jobs]
    assert statuses.count("pending") == ROOM
    assert statuses.count("failed") == 2 * ROOM
