"""Stages that fork: a child does not answer for its worker, and keeps nothing of it."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.api import Api
from tests.support.pipelines.forking import KINDS, STAGES, Forking
from tests.support.services import System
from tests.support.waiting import eventually


@pytest.fixture
def forks(scratch: Path, system: System) -> Forking:
    """The job types of `forking`, known to every service of `system`."""
    forking = Forking(scratch / "forking")
    system.env |= forking.env
    return forking


@pytest.mark.allows("forked")
@pytest.mark.parametrize("stage", STAGES)
async def test_a_stage_that_forks_and_its_neighbour_complete_on_their_first_attempt(
    system: System, api: Api, forks: Forking, stage: str
) -> None:
    system.start_all(stages=(stage,))
    await system.ready()
    worker = system[stage]
    jobs = {kind: await api.submit(f"{stage}_{kind}") for kind in ("steady", *KINDS)}

    def done() -> bool:
        if not worker.running:
            raise RuntimeError(f"the worker ended:\n{worker.stderr}")
        return len(forks.forked()) == len(jobs)

    await eventually(done, what=lambda: f"each is done with forking: {forks.forked()} of {jobs}\n{worker.stderr}")
    forks.open_gate()
    for job_id in jobs.values():
        await api.wait_until(job_id, "completed")
    assert sorted(forks.forked()) == sorted((job_id, 1, child) for job_id, _, child in forks.forked())
    assert not worker.logged("stopping")
    assert len(worker.logged("forked_child_ended", level="error")) == 2
    assert worker.logged("forked_child_ended", job_id=jobs["forgetful"], attempt=1, stage=stage)
    assert await worker.terminate() == 0


@pytest.mark.allows("repeated")
@pytest.mark.parametrize("stage", STAGES)
async def test_a_child_that_outlives_its_killed_worker_keeps_no_connection_to_nats(
    system: System, api: Api, forks: Forking, stage: str
) -> None:
    system.start_all(stages=(stage,))
    await system.ready()
    orphaned = await api.submit(f"{stage}_orphaned")
    await eventually(lambda: len(forks.forked()) == 1)
    child = psutil.Process(forks.forked()[0][2])
    try:
        system[stage].kill()
        assert child.status() != psutil.STATUS_ZOMBIE
        assert child.net_connections("inet") == []
        system.start(stage)
        await system.ready()
        # Its type allows no retry: a single lost delivery would fail it.
        for _ in range(3):
            await api.wait_until(await api.submit(f"{stage}_quick"), "completed")
        forks.open_gate()
        await api.wait_until(orphaned, "completed")
    finally:
        for _, _, pid in forks.forked():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
