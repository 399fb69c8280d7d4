"""A job that is canceled after its redelivery and before the worker begins the attempt."""

from pathlib import Path

from tests.support.api import Api
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.services import LAUNCHERS, System
from tests.support.waiting import eventually


async def test_a_cancel_that_arrives_before_a_redelivered_attempt_begins_is_not_missed(
    system: System, api: Api, duties: Behaviours, scratch: Path
) -> None:
    asked = scratch / "asked"
    system.start_all(stages=STAGES)
    await system.ready()
    job_id = await api.submit("gated")
    await eventually(lambda: duties.runs(job_id))
    system["working"].kill()
    launcher = LAUNCHERS / "worker_that_asks_slowly.py"
    worker = system.start("working", {"TEST_ASKED": str(asked)}, launcher=launcher)
    await eventually(asked.exists, what="it has the job, and asks what was told of it")
    assert (await api.http.post(f"/jobs/{job_id}/cancel")).is_success
    await worker.wait_log("delivery_dropped", job_id=job_id)
    assert len(duties.runs(job_id)) == 1, "its stage never began again"
    assert (await api.get(job_id))["status"] == "canceled"
