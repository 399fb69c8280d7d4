"""Faults 4 and 6: a deployment uses up no attempt, and a long stage runs once."""

import pytest

from tests.support.api import Api
from tests.support.following import Follower
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.rows import events, fetch
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer

DEPLOYS = 10


@pytest.mark.full
async def test_a_stage_that_is_restarted_ten_times_during_one_job_uses_up_no_attempt(
    system: System, api: Api, nats: NatsServer, duties: Behaviours, database_url: str
) -> None:
    # At most one retry, so that a single lost attempt would show.
    system.env |= {"HEIMDEX_RETRY_BACKOFF_SECONDS": "0.1", "HEIMDEX_SHUTDOWN_GRACE_SECONDS": "1"}
    system.start_all(stages=STAGES)
    await system.ready()
    async with Observer(nats.url) as seen, Follower([system.url]) as follower:
        job_id = await api.submit("gated")
        follower.add(job_id)
        for deploy in range(1, DEPLOYS + 1):
            await eventually(lambda deploy=deploy: len(duties.runs(job_id)) == deploy, what=f"it runs, time {deploy}")
            old = system["working"]
            # As a rolling deploy does: the new one is there before the old one goes.
            new = system.start("working")
            await new.wait_log("ready")
            assert await old.terminate() == 0
        await eventually(lambda: len(duties.runs(job_id)) == DEPLOYS + 1)
        duties.open_gate()
        await api.wait_until(job_id, "completed")
        await eventually(seen.empty)
        assert await seen.count("HEIMDEX_ATTEMPTS") == 0
        assert not seen.subjects("heimdex.attempts", job_id)
        handed = seen.payloads("heimdex.jobs", job_id)
    follower.check()
    assert [message.get("reason", "") for message in handed].count("handed_back") == DEPLOYS
    assert all(message.get("attempts", 0) == 0 for message in handed)
    assert [attempt for _, attempt, _ in duties.runs(job_id)] == [1] * (DEPLOYS + 1)
    history = await events(database_url, job_id)
    assert [event["ended_attempt"] for event in history if event["ended_stage"] == "working"] == [1]
    assert not [event for event in history if event["kind"] == "attempt_failed"]


@pytest.mark.parametrize("kind", ["steady", "spinner"])
async def test_a_stage_of_three_ack_waits_runs_once(
    system: System, api: Api, nats: NatsServer, duties: Behaviours, database_url: str, kind: str
) -> None:
    ack_wait = 2.0
    duties.steady_seconds = 3 * ack_wait
    system.env |= {**duties.env, "HEIMDEX_ACK_WAIT_SECONDS": str(ack_wait)}
    system.start_all(stages=STAGES)
    # A second replica would get whatever the first one let slip.
    stage = "working" if kind == "steady" else "spinning"
    system.start(stage)
    await system.ready()
    async with Observer(nats.url) as seen, Follower([system.url]) as follower:
        jobs = [await api.submit(kind) for _ in range(6)]
        follower.add(*jobs)
        for job_id in jobs:
            await api.wait_until(job_id, "completed")
        await eventually(seen.empty)
        consumer = await seen.api(f"CONSUMER.INFO.HEIMDEX_JOBS.{stage}")
    follower.check()
    assert [attempt for _, attempt, _ in duties.runs(stage=stage)] == [1] * len(jobs)
    assert consumer["num_redelivered"] == 0
    assert not await fetch(database_url, "SELECT FROM job_events WHERE kind = 'attempt_failed'")
