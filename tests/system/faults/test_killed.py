"""Fault 1: SIGKILL at the worst moments. Accepted jobs continue, and nothing happens twice."""

from pathlib import Path

import httpx
import pytest

from tests.support.api import Api
from tests.support.following import Follower
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.rows import events, fetch
from tests.support.servers import NatsServer
from tests.support.services import LAUNCHERS, System
from tests.support.waiting import eventually
from tests.support.watching import JOBS, Observer

ONCE = ["extracting", "analyzing", "indexing", "completed"]


@pytest.mark.allows("repeated")
async def test_a_worker_killed_before_the_handler_leaves_its_job_to_the_next_one(
    system: System, api: Api, nats: NatsServer, died: Path
) -> None:
    system.start_all(without=("extracting",))
    first = system.start("extracting", launcher=LAUNCHERS / "worker_dies_before_handler.py")
    await system.ready()
    async with Observer(nats.url) as seen, Follower([system.url]) as follower:
        job_id = await api.submit()
        follower.add(job_id)
        assert await first.ended() == -9
        system.start("extracting")
        job = await api.wait_until(job_id, "completed")
        await eventually(seen.empty)
        assert seen.subjects("heimdex.jobs", job_id) == ONCE
    assert job["result"]["stages_completed"] == ONCE[:3]
    follower.check()


@pytest.mark.allows("repeated")
async def test_a_worker_killed_during_the_handler_leaves_its_job_to_the_next_one(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    system.start_all(stages=STAGES)
    await system.ready()
    async with Observer(nats.url) as seen, Follower([system.url]) as follower:
        job_id = await api.submit("gated")
        follower.add(job_id)
        await eventually(lambda: duties.runs(job_id), what="the handler runs")
        await eventually(lambda: follower.seen(job_id).get("status") == "processing", what="a caller sees it run")
        system["working"].kill()
        duties.open_gate()
        system.start("working")
        await api.wait_until(job_id, "completed")
        await eventually(seen.empty)
        assert seen.subjects("heimdex.jobs", job_id) == ["working", "resting", "completed"]
    assert [attempt for _, attempt, _ in duties.runs(job_id)] == [1, 2]
    follower.check()


@pytest.mark.parametrize("stage", ["extracting", "indexing"])
async def test_a_worker_killed_between_publish_and_ack_does_not_run_its_job_again(
    system: System, api: Api, nats: NatsServer, died: Path, stage: str
) -> None:
    # The rest of the job is over, recorded and removed long before this ack wait has passed.
    system.env["HEIMDEX_ACK_WAIT_SECONDS"] = "30"
    system.start_all(without=(stage,))
    first = system.start(stage, launcher=LAUNCHERS / "dies_before_ack.py")
    await system.ready()
    async with Observer(nats.url) as seen:
        job_id = await api.submit()
        assert await first.ended() == -9
        await api.wait_until(job_id, "completed")
        # The store acknowledged what the worker could not: no message is left that could come back.
        await eventually(seen.empty, 20, what="the stream is empty within the ack wait")
        consumer = await seen.api(f"CONSUMER.INFO.{JOBS}.{stage}")
        assert consumer["num_ack_pending"] == consumer["num_pending"] == consumer["num_redelivered"] == 0
        assert seen.subjects("heimdex.jobs", job_id) == ONCE


@pytest.mark.allows("dropped")
async def test_an_unacknowledged_hand_over_is_redelivered_and_dropped_while_the_store_is_down(
    system: System, api: Api, nats: NatsServer, died: Path
) -> None:
    system.start_all(without=("extracting", "status-store"))
    first = system.start("extracting", launcher=LAUNCHERS / "dies_before_ack.py")
    await system.ready()
    async with Observer(nats.url) as seen:
        job_id = await api.submit()
        assert await first.ended() == -9
        await eventually(lambda: seen.subjects("heimdex.jobs", job_id) == ONCE, what="the other stages do their part")
        await system.start("extracting").wait_log("delivery_dropped", job_id=job_id)
        system.start("status-store")
        await eventually(seen.empty)
        job = await api.wait_until(job_id, "completed")
        assert seen.subjects("heimdex.jobs", job_id) == ONCE
    assert job["result"]["stages_completed"] == ONCE[:3]


async def test_a_store_killed_between_commit_and_ack_records_everything_once(
    system: System, api: Api, nats: NatsServer, database_url: str, died: Path
) -> None:
    system.start_all(without=("status-store",))
    first = system.start("status-store", launcher=LAUNCHERS / "store_dies_before_ack.py")
    await system.ready()
    async with Observer(nats.url) as seen, Follower([system.url]) as follower:
        jobs = [await api.submit() for _ in range(5)]
        follower.add(*jobs)
        assert await first.ended() == -9
        assert await fetch(database_url, "SELECT id FROM jobs"), "it died after a commit"
        # Its unacknowledged messages come back after the store's own ack wait of 30 s; everything newer at once.
        system.start("status-store")
        for job_id in jobs:
            await api.wait_until(job_id, "completed")
        await eventually(seen.empty, 60, what="the redelivered messages are acknowledged")
        for job_id in jobs:
            assert seen.subjects("heimdex.jobs", job_id) == ONCE
            history = [event["kind"] for event in await events(database_url, job_id)]
            assert history == ["submitted", "handed_over", "handed_over", "completed"]
    follower.check()


async def test_a_gateway_killed_between_publish_and_response_has_accepted_the_job(
    system: System, api: Api, nats: NatsServer, database_url: str, died: Path
) -> None:
    system.start_all(without=("gateway",))
    first = system.start("gateway", launcher=LAUNCHERS / "gateway_dies_before_answer.py")
    await system.ready()
    async with Observer(nats.url) as seen:
        with pytest.raises(httpx.HTTPError):
            await api.http.post("/jobs", json={"type": "mock_process"})
        assert await first.ended() == -9
        await eventually(lambda: seen.seen, what="the job was published")
        job_id = seen.seen[0].subject.split(".")[-1]
        system.start("gateway")
        await eventually(api.is_up)
        # The caller got no response, so nothing was promised; the job still runs, and GET returns it by its id.
        await api.wait_until(job_id, "completed")
        another = await api.submit()
        await api.wait_until(another, "completed")
        assert seen.subjects("heimdex.jobs", job_id) == ONCE
