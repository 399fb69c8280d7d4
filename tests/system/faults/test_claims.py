"""What counts as an attempt is what began: neither a delivery that never ran, nor fewer than those that ran."""

import asyncio

import pytest

from tests.support.api import Api
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer

CHECKPOINTS = "HEIMDEX_CHECKPOINTS"


def ends_of(history: list[dict[str, object]]) -> list[tuple[object, object]]:
    return [(entry["event"], entry["ended"]["attempt"]) for entry in history if entry["ended"]]  # type: ignore[index]


@pytest.mark.allows("repeated", "superseded")
async def test_a_delivery_to_a_frozen_worker_costs_no_attempt(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    system.start_all(stages=STAGES)
    await system.ready()
    frozen = system["working"]
    frozen.freeze()
    async with Observer(nats.url) as seen:
        job_id = await api.submit("quick")

        async def is_delivered() -> bool:
            info = await seen.api("CONSUMER.INFO.HEIMDEX_JOBS.working")
            return bool(info["num_ack_pending"] == 1)

        await eventually(is_delivered, what="the server sends the job to the frozen worker")
        await system.start("working").wait_log("ready")
        await api.wait_until(job_id, "completed")
        await eventually(seen.empty)
        assert ends_of(await api.history(job_id)) == [("handed_over", 1), ("completed", 1)]
        frozen.thaw()
        await frozen.wait_log("delivery_superseded", job_id=job_id)
        assert ends_of(await api.history(job_id)) == [("handed_over", 1), ("completed", 1)]


@pytest.mark.allows("repeated")
async def test_a_killed_attempt_is_counted_and_stays_in_the_history(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    system.start_all(stages=STAGES)
    await system.ready()
    async with Observer(nats.url) as seen:
        job_id = await api.submit("gated")
        await eventually(lambda: seen.payloads("heimdex.progress", job_id), what="the attempt reports")
        system["working"].kill()
        system.start("working")
        await eventually(lambda: len(duties.runs(job_id)) == 2, what="the job is redelivered")
        duties.open_gate()
        await api.wait_until(job_id, "completed")
        history = await api.history(job_id)
        assert ends_of(history) == [("attempt_lost", 1), ("handed_over", 2), ("completed", 1)]
        lost = history[1]
        assert lost["error"] == "worker lost: the attempt reported no result"
        assert lost["ended"]["duration_seconds"] is None
        assert lost["ended"]["started_at"] >= history[0]["at"]
        await eventually(seen.empty)
        await eventually(lambda: seen.empty(CHECKPOINTS), what="the claim is removed with the hand-over")


@pytest.mark.allows("repeated", "superseded", "isolated")
async def test_a_frozen_attempt_that_was_claimed_again_settles_nothing(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    system.start_all(stages=STAGES)
    await system.ready()
    async with Observer(nats.url) as seen:
        job_id = await api.submit("gated")
        await eventually(lambda: seen.payloads("heimdex.progress", job_id), what="the first attempt reports")
        system["working"].kill()
        frozen = system.start("working")
        await frozen.wait_log("attempt_started", job_id=job_id, attempt=2)
        frozen.freeze()
        rightful = system.start("working")
        await rightful.wait_log("attempt_started", job_id=job_id, attempt=3)
        frozen.thaw()
        duties.open_gate()
        await api.wait_until(job_id, "completed")
        await eventually(seen.empty)
        assert ends_of(await api.history(job_id))[:2] == [("attempt_lost", 1), ("attempt_lost", 2)]
        await eventually(lambda: seen.empty(CHECKPOINTS))


@pytest.mark.allows("unclaimed", "topology")
async def test_no_attempt_fails_because_the_stream_of_claims_is_full(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    system.start_all(stages=STAGES)
    await system.ready()
    async with Observer(nats.url) as seen:
        config = (await seen.api(f"STREAM.INFO.{CHECKPOINTS}"))["config"]
        changed = await seen.api(f"STREAM.UPDATE.{CHECKPOINTS}", config | {"max_bytes": 1})
        assert "error" not in changed
        job_id = await api.submit("raiser")
        job = await api.wait_until(job_id, "failed")
        assert "on attempt 4 of 4" in job["error"]
        failed = [attempt for event, attempt in ends_of(await api.history(job_id)) if event == "attempt_failed"]
        assert failed == [1, 2, 3]
        await eventually(seen.empty)


@pytest.mark.allows("topology")
async def test_no_attempt_fails_because_the_stream_of_claims_is_deleted(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    system.start_all(stages=STAGES)
    await system.ready()
    async with Observer(nats.url) as seen:
        job_ids = [await api.submit("raiser") for _ in range(5)]
        await seen.api(f"STREAM.DELETE.{CHECKPOINTS}")
        errors = await asyncio.gather(*(api.wait_until(job_id, "failed") for job_id in job_ids))
        # A deleted claim may cost the count of one attempt: it runs again.
        assert all("on attempt 4 of 4" in job["error"] for job in errors)
        await eventually(seen.empty)
        assert await seen.count(CHECKPOINTS) >= 0, "the stream is created again"


async def test_a_cancel_between_two_attempts_removes_the_claim(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    system.env["HEIMDEX_RETRY_BACKOFF_SECONDS"] = "600"
    system.start_all(stages=STAGES)
    await system.ready()
    async with Observer(nats.url) as seen:
        job_id = await api.submit("raiser")
        await system["working"].wait_log("attempt_failed", job_id=job_id)
        await eventually(lambda: seen.payloads("heimdex.checkpoints", job_id), what="the attempt is counted")
        assert (await api.http.post(f"/jobs/{job_id}/cancel")).status_code == 200
        await eventually(seen.empty)
        await eventually(lambda: seen.empty(CHECKPOINTS), what="the claim is removed with the job's messages")
