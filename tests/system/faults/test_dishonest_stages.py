"""Stages that lie: their jobs end as they should, and their worker goes on with the others."""

import pytest

from tests.support.api import Api
from tests.support.pipelines import with_pipelines
from tests.support.pipelines.dishonest import COMPLETES, FAILS, STAGES
from tests.support.services import System


@pytest.fixture(autouse=True)
def declared(system: System) -> None:
    system.env |= {**with_pipelines("dishonest"), "HEIMDEX_RETRY_BACKOFF_SECONDS": ""}
    system.env |= {"HEIMDEX_STAGE_CONCURRENCY": "2"}  # a slot that is not freed would show


@pytest.mark.allows("errors")
async def test_each_job_ends_as_its_stage_deserves_and_none_costs_its_worker_a_slot(system: System, api: Api) -> None:
    system.start_all(stages=STAGES)
    await system.ready()
    kinds = ("async", "blocking")
    failing = {await api.submit(f"{name}-{kind}"): words for name, words in FAILS.items() for kind in kinds}
    completing = [await api.submit(f"{name}-{kind}") for name in COMPLETES for kind in kinds]
    for job_id, words in failing.items():
        job = await api.wait_until(job_id, "failed")
        assert words in job["error"]
        assert "attempt 1" in job["error"]
        traceback = (await api.history(job_id))[-1]["traceback"]
        if words != FAILS["lazy"]:
            assert "in lie" in traceback, "the frames of its stage"
    for job_id in completing:
        await api.wait_until(job_id, "completed")
    for stage in STAGES:
        assert await system[stage].terminate() == 0


@pytest.mark.allows("errors")
@pytest.mark.full
async def test_async_stages_that_ignore_their_cancellation_are_counted_and_too_many_end_the_worker(
    system: System, api: Api
) -> None:
    system.start_all(stages=STAGES)
    await system.ready()
    worker = system[STAGES[0]]
    deaf = [await api.submit("deaf-async") for _ in range(2)]
    for job_id in deaf:
        assert "time-out" in (await api.wait_until(job_id, "failed"))["error"]
    await api.wait_until(await api.submit("honest-async"), "completed")
    assert await worker.ended() == 1
    warnings = worker.logged("task_abandoned", level="warning", stage=STAGES[0], attempt=1)
    assert {entry["job_id"] for entry in warnings} == set(deaf)
    assert [entry["abandoned"] for entry in warnings] == [1, 2]
    assert worker.logged("too_many_threads_abandoned", level="error")
