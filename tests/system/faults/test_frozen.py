"""Fault 3: a worker is frozen for longer than its ack wait, and continues after another has finished its job."""

import asyncio
import time

import pytest

from tests.support.api import Api
from tests.support.ends import published
from tests.support.following import Follower
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.rows import events
from tests.support.servers import NatsServer
from tests.support.services import Service, System
from tests.support.waiting import eventually
from tests.support.watching import JOBS, Observer


async def freeze_one_and_finish_with_another(
    system: System, api: Api, duties: Behaviours, follower: Follower
) -> tuple[str, Service]:
    """Return a job that a frozen worker still holds, and that another worker has handed over."""
    await system.start("working").wait_log("ready")
    job_id = await api.submit("gated")
    follower.add(job_id)
    await eventually(lambda: duties.runs(job_id), what="the first worker runs the job")
    pid = duties.runs(job_id)[0][2]
    frozen = next(worker for worker in system.all("working") if worker.pid == pid)
    frozen.freeze()
    await eventually(lambda: len(duties.runs(job_id)) == 2, what="after the ack wait another one runs it")
    duties.open_gate()
    return job_id, frozen


@pytest.mark.allows("repeated", "superseded")
@pytest.mark.parametrize("restarted", [False, True], ids=["", "nats-restarted-in-between"])
async def test_a_late_hand_over_is_refused_by_the_broker(
    system: System, api: Api, nats: NatsServer, duties: Behaviours, database_url: str, restarted: bool
) -> None:
    system.start_all(stages=STAGES)
    await system.ready()
    async with Follower([system.url]) as follower:
        async with Observer(nats.url) as seen:
            job_id, frozen = await freeze_one_and_finish_with_another(system, api, duties, follower)
            await api.wait_until(job_id, "completed")
            await eventually(seen.empty)
        if restarted:
            system.allow("nats_killed")
            # Which also empties the window in which a repeated Nats-Msg-Id would be noticed.
            await asyncio.to_thread(nats.kill)
            await asyncio.to_thread(nats.start)
        await follow_the_thaw(nats, system, api, frozen, job_id)
        kinds = [event["kind"] for event in await events(database_url, job_id)]
        assert kinds == ["submitted", "handed_over", "completed"]
    follower.check()


async def follow_the_thaw(nats: NatsServer, system: System, api: Api, frozen: Service, job_id: str) -> None:
    """Assert that no further message of the job is stored, and that the worker that was frozen runs new jobs."""
    async with Observer(nats.url) as seen:
        before = (await seen.api(f"STREAM.INFO.{JOBS}"))["state"]["last_seq"]
        frozen.thaw()
        await frozen.wait_log("delivery_superseded", job_id=job_id)
        await eventually(seen.empty)
        # A plain subscriber sees the attempt; the stream has refused it.
        assert (await seen.api(f"STREAM.INFO.{JOBS}"))["state"]["last_seq"] == before
        assert (await api.get(job_id))["status"] == "completed"
        other = next(worker for worker in system.all("working") if worker is not frozen)
        other.kill()
        await api.wait_until(await api.submit("quick"), "completed")


@pytest.mark.allows("repeated", "superseded")
@pytest.mark.full
async def test_a_late_hand_over_is_refused_while_the_status_store_is_down_too(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    system.start_all(stages=STAGES)
    await system.ready()
    await system["status-store"].terminate()
    async with Observer(nats.url) as seen, Follower([system.url]) as follower:
        job_id, frozen = await freeze_one_and_finish_with_another(system, api, duties, follower)
        await published(seen, [job_id])
        frozen.thaw()
        await frozen.wait_log("delivery_superseded", job_id=job_id)
        system.start("status-store")
        await api.wait_until(job_id, "completed")
        await eventually(seen.empty)
        assert await seen.count("HEIMDEX_UNUSABLE") == 0
    follower.check()


@pytest.mark.allows("repeated")
@pytest.mark.full
async def test_a_frozen_only_worker_uses_up_few_attempts_of_its_jobs_and_of_new_ones(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    system.start_all(stages=STAGES)
    await system.ready()
    held = await api.submit("gated")
    await eventually(lambda: duties.runs(held), what="the worker runs the job")
    system["working"].freeze()
    # Its standing request for more is still with the server.
    came = await api.submit("gated")
    async with Observer(nats.url) as seen:
        ack_wait = float(system.env["HEIMDEX_ACK_WAIT_SECONDS"] or 0)
        lapsed = time.monotonic() + 6 * ack_wait
        await eventually(lambda: time.monotonic() > lapsed, what="six ack waits pass")
        system.start("working")
        await eventually(lambda: len(duties.runs(held)) == 2, what="another one runs it")
        await eventually(lambda: duties.runs(came), what="another one runs what came meanwhile")
        duties.open_gate()
        for job_id in (held, came):
            await api.wait_until(job_id, "completed")
        await eventually(seen.empty)


async def test_a_frozen_store_that_resumes_beside_another_records_nothing_older(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    system.start_all(stages=STAGES)
    await system.ready()
    async with Observer(nats.url) as seen, Follower([system.url]) as follower:
        frozen = system["status-store"]
        first = await api.submit("quick")
        await api.wait_until(first, "completed")
        frozen.freeze()
        system.start("status-store")
        jobs = [await api.submit("quick") for _ in range(5)]
        follower.add(*jobs)
        await system.ready()
        # What the frozen store was given comes to the other one after the store's ack wait, or with the thaw.
        await published(seen, jobs)
        frozen.thaw()
        for job_id in jobs:
            await api.wait_until(job_id, "completed")
        await eventually(seen.empty)
    follower.check()
