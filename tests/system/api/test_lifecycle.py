"""The whole system: a job from its submission to its terminal state, as callers and operators see it."""

import re
from itertools import pairwise

import pytest

from tests.support.api import Api
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer

STAGES = ["extracting", "analyzing", "indexing"]
KEYS = ["id", "status", "stage", "progress", "result", "error", "created_at", "updated_at"]
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ORDER = {"pending": 0, "processing": 1, "completed": 2}


@pytest.mark.containers
async def test_a_job_completes_through_all_stages_with_one_hand_over_each(
    system: System, api: Api, nats: NatsServer
) -> None:
    system.start_all()
    await system.ready()
    async with Observer(nats.url) as seen:
        job_id = await api.submit(headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
        job = await api.wait_until(job_id, "completed")
        await eventually(seen.empty, what="the stream HEIMDEX_JOBS is empty")

        assert seen.subjects("heimdex.jobs", job_id) == ["extracting", "analyzing", "indexing", "completed"]
        for msg in seen.messages("heimdex", job_id):
            assert msg.headers["Nats-Msg-Id"]
            assert msg.headers["traceparent"].split("-")[1] == TRACE
        assert len({msg.headers["Nats-Msg-Id"] for msg in seen.messages("heimdex.jobs", job_id)}) == 4
        assert seen.subjects("heimdex.attempts", job_id) == []
    assert list(job) == KEYS
    assert (job["id"], job["stage"], job["progress"], job["error"]) == (job_id, "indexing", 100, None)
    assert job["result"]["stages_completed"] == ["extracting", "analyzing", "indexing"]
    assert job["result"]["total_duration_seconds"] >= 0
    for name in ("created_at", "updated_at"):
        assert MOMENT.fullmatch(job[name])
    assert job["created_at"] <= job["updated_at"]


@pytest.mark.containers
async def test_a_job_with_fail_at_stage_has_four_attempts_and_then_fails_at_that_stage(
    system: System, api: Api, nats: NatsServer
) -> None:
    system.start_all()
    await system.ready()
    async with Observer(nats.url) as seen:
        for number, stage in enumerate(STAGES):
            job_id = await api.submit(fail_at_stage=stage)
            job = await api.wait_until(job_id, "failed")
            await eventually(seen.empty, what="the stream HEIMDEX_JOBS is empty")

            assert seen.subjects("heimdex.jobs", job_id) == [*STAGES[: number + 1], "failed"]
            attempts = seen.payloads("heimdex.attempts", job_id)
            assert [attempt["attempt"] for attempt in attempts] == [1, 2, 3]
            assert [attempt["delay_seconds"] for attempt in attempts] == [0.1, 0.1, 0.1]
            assert set(seen.subjects("heimdex.attempts", job_id)) == {stage}
            assert all(msg.headers["Nats-Msg-Id"] for msg in seen.messages("heimdex.attempts", job_id))
            assert list(job) == KEYS
            assert (job["stage"], job["result"]) == (stage, None)
            assert stage in job["error"]
            assert job["progress"] < 100
        await eventually(lambda: seen.empty("HEIMDEX_ATTEMPTS"))


async def test_the_pipelines_own_backoff_of_1_2_4_seconds_is_used_if_none_is_set(
    system: System, api: Api, nats: NatsServer
) -> None:
    system.env["HEIMDEX_RETRY_BACKOFF_SECONDS"] = ""
    system.start_all()
    await system.ready()
    async with Observer(nats.url) as seen:
        job_id = await api.submit(fail_at_stage="extracting")
        await api.wait_until(job_id, "failed")
        delays = [attempt["delay_seconds"] for attempt in seen.payloads("heimdex.attempts", job_id)]
    assert delays == [1, 2, 4]


async def test_a_job_is_pending_until_a_worker_starts_it_and_its_progress_increases_in_a_stage(
    system: System, api: Api
) -> None:
    system.env["HEIMDEX_MOCK_TIME_SCALE"] = "0.7"
    system.start_all(without=("extracting",))
    await system.ready()
    job_id = await api.submit()
    first = await api.get(job_id)
    assert (first["status"], first["stage"], first["progress"]) == ("pending", None, 0)
    assert (first["result"], first["error"]) == (None, None)
    assert first["created_at"] <= first["updated_at"]
    system.start("extracting")

    seen = [first]

    async def ended() -> bool:
        seen.append(await api.get(job_id))
        return seen[-1]["status"] == "completed"

    await eventually(ended)
    for earlier, later in pairwise(seen):
        assert list(later) == KEYS
        assert ORDER[later["status"]] >= ORDER[earlier["status"]]
        assert later["progress"] >= earlier["progress"]
        assert later["updated_at"] >= earlier["updated_at"]
        assert later["created_at"] == first["created_at"]
        assert (later["progress"] == 100) == (later["status"] == "completed")
    within_analyzing = {job["progress"] for job in seen if job["stage"] == "analyzing"}
    assert len(within_analyzing) >= 2, within_analyzing
    assert min(within_analyzing) >= 33
    assert max(within_analyzing) <= 83


@pytest.mark.full
async def test_many_jobs_at_once_all_complete_and_leave_the_stream_empty(
    system: System, api: Api, nats: NatsServer
) -> None:
    system.start_all()
    for name in ("analyzing", "status-store"):
        system.start(name)  # a second replica
    await system.ready()
    job_ids = [await api.submit() for _ in range(100)]
    for job_id in job_ids:
        await api.wait_until(job_id, "completed")
    async with Observer(nats.url) as seen:
        await eventually(seen.empty, what="the stream HEIMDEX_JOBS is empty")
        assert await seen.empty("HEIMDEX_UNUSABLE")
    assert len(set(job_ids)) == 100
