"""Blocking stages: whether their functions return or not, the worker continues with its other jobs."""

import os
from pathlib import Path

import pytest

from tests.support.api import Api
from tests.support.pipelines.blocking import STAGE, Blocking
from tests.support.services import System
from tests.support.waiting import eventually

#: Below the default of HEIMDEX_STAGE_CONCURRENCY.
MANY = 64


@pytest.fixture
def blocking(scratch: Path, system: System) -> Blocking:
    """The job types of `blocking`, known to every service of `system`."""
    blocking = Blocking(scratch / "blocking")
    system.env |= blocking.env
    return blocking


async def test_a_stage_that_raises_an_exception_that_futures_refuse_fails_after_its_retries(
    system: System, api: Api, blocking: Blocking
) -> None:
    system.start_all(stages=(STAGE,))
    await system.ready()
    odd = await api.submit("odd")
    job = await api.wait_until(odd, "failed")
    assert "StopIteration" in job["error"]
    assert "attempt 2 of 2" in job["error"]
    worker = system[STAGE]
    assert [run for run in blocking.runs() if run[0] == odd] == [(odd, 1, worker.pid), (odd, 2, worker.pid)]
    assert await worker.terminate() == 0


async def test_as_many_blocking_functions_run_at_once_as_a_worker_holds_jobs(
    system: System, api: Api, blocking: Blocking
) -> None:
    system.start_all(stages=(STAGE,))
    await system.ready()
    jobs = [await api.submit("patient") for _ in range(MANY)]
    await eventually(lambda: len(blocking.runs()) == MANY, what=lambda: f"all run; {len(blocking.runs())} do")
    blocking.open_gate()
    for job_id in jobs:
        await api.wait_until(job_id, "completed")
    assert [attempt for _, attempt, _ in blocking.runs()] == [1] * MANY
    assert await system[STAGE].terminate() == 0


@pytest.mark.allows("errors", "handed_back")
async def test_functions_that_never_return_use_no_slot_and_too_many_of_them_end_the_worker(
    system: System, api: Api, blocking: Blocking
) -> None:
    system.env |= {"HEIMDEX_STAGE_CONCURRENCY": "2", "HEIMDEX_SHUTDOWN_GRACE_SECONDS": "1"}
    system.start_all(stages=(STAGE,))
    await system.ready()
    worker = system[STAGE]
    stuck = [await api.submit("stuck") for _ in range(2)]
    patient = await api.submit("patient")
    for job_id in stuck:
        assert "time-out" in (await api.wait_until(job_id, "failed"))["error"]
    # It runs beside as many functions that never return as the worker may hold jobs.
    await eventually(lambda: (patient, 1, worker.pid) in blocking.runs(), what="its function is called all the same")
    assert await worker.ended() == 1
    warnings = worker.logged("thread_abandoned", level="warning", stage=STAGE, attempt=1)
    assert {entry["job_id"] for entry in warnings} == set(stuck)
    assert [entry["abandoned"] for entry in warnings] == [1, 2]
    assert worker.logged("too_many_threads_abandoned", level="error")
    assert worker.logged("job_handed_back", job_id=patient)
    blocking.open_gate()
    system.start(STAGE)
    await api.wait_until(patient, "completed")
    assert [attempt for job_id, attempt, _ in blocking.runs() if job_id == patient] == [1, 1]


@pytest.mark.allows("errors")
async def test_a_worker_stops_on_sigterm_while_a_function_never_returns(
    system: System, api: Api, blocking: Blocking
) -> None:
    system.start_all(stages=(STAGE,))
    await system.ready()
    await api.wait_until(await api.submit("stuck"), "failed")
    assert await system[STAGE].terminate() == 0


async def test_a_stage_that_changes_the_current_folder_does_not_move_the_health_file(
    system: System, api: Api, blocking: Blocking
) -> None:
    health = system.folder / "health"
    system.start_all(stages=())
    worker = system.start(STAGE, env={"HEIMDEX_HEALTH_FILE": os.path.relpath(health)})  # noqa: ASYNC240  # text only
    await system.ready()
    await api.wait_until(await api.submit("moved"), "completed")
    health.unlink(missing_ok=True)
    await eventually(health.exists, what="the worker touches its health file")
    assert not worker.logged("health_file_unwritable")
