"""Fault 12: the clocks of the machines do not agree."""

from typing import Any

import pytest

from tests.support.api import Api
from tests.support.following import Follower
from tests.support.pipelines.scripted import STAGES as SCRIPTED
from tests.support.pipelines.scripted import Script
from tests.support.rows import fetch
from tests.support.servers import NatsServer
from tests.support.services import LAUNCHERS, MOCK_STAGES, System
from tests.support.waiting import eventually
from tests.support.watching import Observer
from tests.system.faults.test_nats_lost import restart


@pytest.mark.parametrize("ahead", ["gateway", "extracting", "indexing"])
async def test_times_never_run_backwards_when_one_clock_is_five_minutes_ahead(
    system: System, nats: NatsServer, database_url: str, ahead: str
) -> None:
    system.env["HEIMDEX_MOCK_TIME_SCALE"] = "0.2"
    system.start_all(without=(ahead,))
    system.start(ahead, launcher=LAUNCHERS / "clock_ahead.py")
    await system.ready()
    async with (
        Api(system.url) as api,
        Observer(nats.url) as seen,
        Follower([system.url], pause=0.01) as follower,
    ):
        jobs = [await api.submit(), await api.submit(fail_at_stage="analyzing")]
        follower.add(*jobs)
        done = await api.wait_until(jobs[0], "completed")
        failed = await api.wait_until(jobs[1], "failed")
        await eventually(seen.empty)
    follower.check()
    for job in (done, failed):
        assert job["created_at"] <= job["updated_at"]
    # By the clocks of two machines it may have ended before it began; its duration is still that of its work.
    assert done["result"]["total_duration_seconds"] >= 6 * 0.2 * 0.9
    assert done["result"]["stages_completed"] == list(MOCK_STAGES)
    rows = await fetch(database_url, "SELECT started_at, at, seconds FROM job_events ORDER BY job_id, step, attempt")
    assert all(row["seconds"] is None or row["seconds"] >= 0 for row in rows)
    assert all(row["started_at"] is None or row["started_at"] <= row["at"] for row in rows)


@pytest.mark.allows("nats_killed", "restored")
async def test_a_job_of_a_worker_whose_clock_is_ahead_is_restored_when_nats_comes_back_with_an_empty_disk(
    system: System, api: Api, nats: Any, script: Script
) -> None:
    system.env |= script.env
    script.write("grinding", "gate")
    system.start_all(stages=SCRIPTED, without=("preparing",))
    system.start("preparing", launcher=LAUNCHERS / "clock_ahead.py")
    await system.ready()
    job = await api.submit("scripted")
    await eventually(lambda: len(script.runs("grinding")) == 1, what="it is in the second stage")
    await api.wait_until_listed([job], stage="grinding")
    system["grinding"].kill()
    await restart(nats, wipe=True)
    script.open_gate()
    system.start("grinding")
    await api.wait_until(job, "completed")  # not only once the right clock has caught up, in five minutes
