"""Commands of stages: they end with their attempts, however these end, and with them all that they started."""

from pathlib import Path

import pytest

from tests.support.api import Api
from tests.support.pipelines.commands import KINDS, STAGES, Processes
from tests.support.services import System
from tests.support.waiting import eventually


@pytest.fixture
def processes(scratch: Path, system: System) -> Processes:
    """The job types of `commands`, configured in every service of `system`."""
    processes = Processes(scratch / "commands")
    system.env |= processes.env
    return processes


async def started(processes: Processes, job_id: str, stage: str) -> list[int]:
    await eventually(lambda: processes.pids(job_id, stage), what="its command has started its children")
    pids = processes.pids(job_id, stage)
    assert len(processes.living(pids)) == 3
    return pids


@pytest.mark.allows("errors")
async def test_a_command_ends_with_its_stage_its_cancel_and_its_time_out(
    system: System, api: Api, processes: Processes
) -> None:
    system.start_all(stages=STAGES)
    await system.ready()
    for kind, stage in zip(KINDS, STAGES, strict=True):
        canceled, limited = await api.submit(f"endless-{kind}"), await api.submit(f"limited-{kind}")
        quick, failing = await api.submit(f"quick-{kind}"), await api.submit(f"failing-{kind}")
        pids = await started(processes, canceled, stage)
        response = await api.http.post(f"/jobs/{canceled}/cancel")
        assert response.status_code < 300
        assert "time-out" in (await api.wait_until(limited, "failed"))["error"]
        assert "the command 'sh' ended with exit code 3" in (await api.wait_until(failing, "failed"))["error"]
        await api.wait_until(quick, "completed")
        await api.wait_until(canceled, "canceled")
        pids += processes.pids(limited, stage) + processes.pids(quick, stage)
        assert len(pids) == 9
        await eventually(lambda pids=pids: not processes.living(pids), what="all of their processes end")
        [line] = system[stage].logged("command_stderr", job_id=failing)
        assert (line["message"], line["stage"], line["attempt"]) == ("no such codec", stage, 1)
    for stage in STAGES:
        assert await system[stage].terminate() == 0


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
async def test_a_command_ends_with_its_worker(system: System, api: Api, processes: Processes, end: str) -> None:
    system.env |= {"HEIMDEX_SHUTDOWN_GRACE_SECONDS": "3"}
    system.start_all(stages=STAGES)
    await system.ready()
    for kind, stage in zip(KINDS, STAGES, strict=True):
        job_id = await api.submit(f"endless-{kind}")
        pids = await started(processes, job_id, stage)
        if end == "SIGKILL":
            system[stage].kill()
        else:
            assert await system[stage].terminate() == 0
            assert system[stage].logged("job_handed_back", job_id=job_id)
        await eventually(lambda pids=pids: not processes.living(pids), what="all of its processes end")
