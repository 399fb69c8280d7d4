"""Stages whose code tries to end the worker from within its event loop."""

from pathlib import Path

import pytest

from tests.support.api import Api
from tests.support.pipelines.exiting import IN_CALLBACKS, IN_TASKS, STAGE, Exiting
from tests.support.services import System
from tests.support.waiting import eventually


@pytest.fixture
def exiting(scratch: Path, system: System) -> Exiting:
    """The job types of `exiting`, known to every service of `system`."""
    made = Exiting(scratch / "exiting")
    system.env |= made.env
    return made


@pytest.mark.allows("errors")
async def test_a_child_task_that_exits_fails_its_attempt_and_neither_the_worker_nor_its_neighbour(
    system: System, api: Api, exiting: Exiting
) -> None:
    system.start_all(stages=(STAGE,))
    await system.ready()
    neighbour = await api.submit("neighbour")
    await eventually(lambda: exiting.runs() == [(neighbour, 1)])
    for kind in IN_TASKS:
        job = await api.wait_until(await api.submit(kind), "failed")
        assert "the stage tried to end its worker" in job["error"], kind
    exiting.open_gate()
    await api.wait_until(neighbour, "completed")
    assert exiting.runs().count((neighbour, 1)) == 1
    assert await system[STAGE].terminate() == 0


@pytest.mark.allows("exit_refused")
async def test_a_callback_that_exits_ends_neither_the_worker_nor_an_attempt(
    system: System, api: Api, exiting: Exiting
) -> None:
    system.start_all(stages=(STAGE,))
    await system.ready()
    worker = system[STAGE]
    jobs = [await api.submit(kind) for kind in ("neighbour", *IN_CALLBACKS)]
    await worker.wait_log("exit_refused", count=len(IN_CALLBACKS), level="error")
    exiting.open_gate()
    for job_id in jobs:
        await api.wait_until(job_id, "completed")
    assert sorted(exiting.runs()) == sorted((job_id, 1) for job_id in jobs)
    refused = worker.logged("exit_refused")
    assert [entry["error"] for entry in refused].count("SystemExit(0)") == len(IN_CALLBACKS) - 1
    assert any("in _exit" in entry["exception"] for entry in refused)
    assert await worker.terminate() == 0


async def test_a_thread_that_an_async_stage_awaits_does_not_keep_a_stopping_worker(
    system: System, api: Api, exiting: Exiting
) -> None:
    system.env["HEIMDEX_SHUTDOWN_GRACE_SECONDS"] = "1"
    system.start_all(stages=(STAGE,))
    await system.ready()
    job_id = await api.submit("thread")
    await eventually(lambda: exiting.runs() == [(job_id, 1)])
    assert await system[STAGE].terminate() == 0
    assert system[STAGE].logged("job_handed_back", job_id=job_id)
