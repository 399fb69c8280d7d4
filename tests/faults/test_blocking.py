"""Blocking stages: however their functions end, or do not, the worker goes on with the others."""

from pathlib import Path

import pytest

from tests.harness.api import Api
from tests.harness.pipelines.blocking import STAGE, Blocking
from tests.harness.services import System


@pytest.fixture
def blocking(scratch: Path, system: System) -> Blocking:
    """The job types of `blocking`, known to every service of `system`."""
    made = Blocking(scratch / "blocking")
    system.env |= made.env
    return made


async def test_a_stage_that_raises_what_no_future_takes_fails_after_its_retries(
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
