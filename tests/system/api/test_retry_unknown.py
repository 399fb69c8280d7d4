"""POST /jobs/retry when the gateway does not know the type of some failed jobs any more."""

import asyncio

from tests.support.api import Api
from tests.support.pipelines.scripted import STAGES, Script
from tests.support.services import LAUNCHERS, MOCK_STAGES, System
from tests.support.waiting import eventually


async def test_jobs_of_an_unknown_type_are_skipped_and_do_not_hide_the_others(
    scripted: System, api: Api, script: Script
) -> None:
    script.write("preparing", "permanent")
    scripted.env["HEIMDEX_RETRY_BACKOFF_SECONDS"] = "0.05"
    scripted.start_all(stages=(*MOCK_STAGES, *STAGES))
    await scripted.ready()
    failed = await asyncio.gather(*(api.submit(fail_at_stage="extracting") for _ in range(5)))
    unknown = await asyncio.gather(*(api.submit("scripted") for _ in range(4)))
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
