"""Async stages that block the event loop of their worker: neither they nor their neighbours lose an attempt."""

from pathlib import Path

import pytest

from tests.support.api import Api
from tests.support.pipelines.looping import STAGE, Looping
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer


@pytest.fixture
def looping(scratch: Path, system: System) -> Looping:
    """The job types of `looping`, known to every service of `system`."""
    return Looping(scratch / "looping")


@pytest.mark.parametrize("kind", ["task_blocker", pytest.param("computing", marks=pytest.mark.full)])
async def test_a_loop_blocked_for_several_ack_waits_costs_no_attempt(
    system: System, api: Api, nats: NatsServer, looping: Looping, kind: str
) -> None:
    looping.seconds = 7.0  # more than three ack waits
    system.env |= looping.env
    system.start_all(stages=(STAGE,))
    await system.ready()
    worker = system[STAGE]
    async with Observer(nats.url) as seen:
        neighbours = [await api.submit("neighbour") for _ in range(3)]
        await eventually(lambda: len(looping.runs()) == len(neighbours))
        # Another worker is ready for whatever the blocked one lets slip.
        other = system.start(STAGE)
        await other.wait_log("ready")
        blockers = [await api.submit(kind)]
        logged = await eventually(lambda: [*worker.logged("loop_blocked"), *other.logged("loop_blocked")])
        looping.open_gate()
        for job_id in (*neighbours, *blockers):
            await api.wait_until(job_id, "completed")
        consumer = await seen.api(f"CONSUMER.INFO.HEIMDEX_JOBS.{STAGE}")
    assert consumer["num_redelivered"] == 0
    assert sorted(job_id for job_id, attempt, _ in looping.runs()) == sorted([*neighbours, *blockers])
    assert logged[0]["level"] == "warning"
    assert (logged[0]["job_id"], logged[0]["attempt"], logged[0]["stage"]) == (blockers[0], 1, STAGE)
    assert ("in looping" if kind == "computing" else "in _block_in_task") in logged[0]["stack"]
    assert "heimdex_stage_worker" not in logged[0]["stack"], "only the stage's frames"


@pytest.mark.allows("blocked", "repeated")
async def test_a_worker_whose_loop_is_blocked_for_too_long_exits_and_its_jobs_complete_elsewhere(
    system: System, api: Api, looping: Looping
) -> None:
    looping.seconds = 3600.0
    system.env |= {**looping.env, "HEIMDEX_BLOCKED_SECONDS": "3"}
    system.start_all(stages=(STAGE,))
    await system.ready()
    worker = system[STAGE]
    neighbour = await api.submit("neighbour")
    await eventually(lambda: len(looping.runs()) == 1)
    blocker = await api.submit("blocker")
    assert await worker.ended() == 1
    (logged,) = worker.logged("loop_blocked_too_long", level="error", job_id=blocker, attempt=1)
    assert "in looping" in logged["stack"]
    assert logged["blocked_seconds"] >= 3
    looping.open_gate()
    system.start(STAGE)
    for job_id in (neighbour, blocker):
        await api.wait_until(job_id, "completed")


@pytest.mark.allows("blocked")
async def test_so_does_a_worker_that_a_callback_of_a_completed_attempt_blocks_while_it_holds_nothing(
    system: System, api: Api, looping: Looping
) -> None:
    looping.seconds = 3600.0
    system.env |= {**looping.env, "HEIMDEX_BLOCKED_SECONDS": "3"}
    system.start_all(stages=(STAGE,))
    await system.ready()
    worker = system[STAGE]
    await api.wait_until(await api.submit("late_blocker"), "completed")
    assert await worker.ended() == 1
    (logged,) = worker.logged("loop_blocked_too_long", held=0)
    assert "in _block" in logged["stack"]
    assert "job_id" not in logged
    assert not worker.logged("nats_connected", connection="blocked-loop")
