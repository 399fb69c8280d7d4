"""POST /jobs/retry where some of the failed jobs are of a removed type, and of a release before routes.

Their stages are not known, so they cannot be retried.
"""

import asyncio
import uuid

from heimdex_contracts import messages, subjects
from heimdex_contracts.messages import Due
from tests.support.api import Api
from tests.support.pipelines.scripted import STAGES, Script
from tests.support.servers import NatsServer
from tests.support.services import LAUNCHERS, MOCK_STAGES, System
from tests.support.waiting import eventually
from tests.support.watching import Observer


async def submit_without_route(nats: NatsServer) -> str:
    """Publish a job as a gateway of a release before routes does, and return its id."""
    job = Due(
        job_id=str(uuid.uuid4()),
        type="scripted",
        step=0,
        created_at=messages.now(),
        at=messages.now(),
        stage="preparing",
        reason="submitted",
    )
    async with Observer(nats.url, "heimdex-nothing") as observer:
        await observer.nc.request(subjects.job_subject(job.stage, job.job_id), messages.encode(job))
    return job.job_id


async def test_jobs_whose_stages_are_not_known_are_skipped_and_do_not_hide_the_others(
    scripted: System, api: Api, script: Script, nats: NatsServer
) -> None:
    script.write("preparing", "permanent")
    scripted.env["HEIMDEX_RETRY_BACKOFF_SECONDS"] = "0.05"
    scripted.start_all(stages=(*MOCK_STAGES, *STAGES))
    await scripted.ready()
    failed = await asyncio.gather(*(api.submit(fail_at_stage="extracting") for _ in range(5)))
    unknown = await asyncio.gather(*(submit_without_route(nats) for _ in range(4)))
    await api.wait_until_listed([*failed, *unknown], status="failed")
    for stage in MOCK_STAGES:
        scripted[stage].kill()  # what runs again stays so
    await scripted["gateway"].terminate()
    gateway = scripted.start("gateway", {"HEIMDEX_PIPELINES": None}, LAUNCHERS / "gateway_that_retries_few.py")
    await gateway.wait_log("ready")
    retried = 0

    async def no_more() -> bool:
        nonlocal retried
        answer = (await api.http.post("/jobs/retry?status=failed")).json()
        retried += answer["retried"]
        return not answer["more"]

    await eventually(no_more, what="a caller who asks as long as there are more comes to an end")
    assert retried == len(failed)
    for job_id in failed:
        assert (await api.get(job_id))["status"] == "pending"
    for job_id in unknown:
        assert (await api.get(job_id))["status"] == "failed"
