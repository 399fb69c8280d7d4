"""Changes of the streams with the stock CLI (removed, limited, edited): all are repaired without a restart."""

import time
from typing import Any

import pytest

from tests.support.api import Api
from tests.support.load import Load
from tests.support.pipelines.behaviours import STAGES as DUTIES
from tests.support.pipelines.behaviours import Behaviours
from tests.support.rows import statuses
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import JOBS, Observer

#: The promise is 15 s; a test machine with more to do than cores gets more.
HEALED_WITHIN_SECONDS = 30

REMOVALS = [
    "CONSUMER.DELETE.HEIMDEX_JOBS.status-store",
    "CONSUMER.DELETE.HEIMDEX_JOBS.extracting",
    "CONSUMER.DELETE.HEIMDEX_JOBS.indexing",
    "CONSUMER.DELETE.HEIMDEX_JOBS.later",
    "CONSUMER.DELETE.HEIMDEX_ATTEMPTS.status-store",
    "CONSUMER.DELETE.HEIMDEX_PROGRESS.status-store",
    "STREAM.DELETE.HEIMDEX_ATTEMPTS",
    "STREAM.DELETE.HEIMDEX_PROGRESS",
    "STREAM.DELETE.HEIMDEX_CALLBACKS",
    "STREAM.DELETE.HEIMDEX_UNUSABLE",
    "STREAM.DELETE.KV_HEIMDEX_IDEMPOTENCY",
    "STREAM.DELETE.HEIMDEX_JOBS",
]


async def is_ready(api: Api) -> bool:
    return (await api.http.get("/readyz")).status_code == 200


async def edit_stream(seen: Observer, name: str, **changes: Any) -> None:
    """Change the current configuration of a stream, as `nats stream edit` does."""
    config = (await seen.api(f"STREAM.INFO.{name}"))["config"]
    answer = await seen.api(f"STREAM.UPDATE.{name}", {**config, **changes})
    assert "error" not in answer, answer


async def edit_consumer(seen: Observer, stream: str, name: str, **changes: Any) -> None:
    """Change the current configuration of a consumer, as `nats consumer edit` does."""
    config = (await seen.api(f"CONSUMER.INFO.{stream}.{name}"))["config"]
    body = {"stream_name": stream, "config": {**config, **changes}}
    answer = await seen.api(f"CONSUMER.DURABLE.CREATE.{stream}.{name}", body)
    assert "error" not in answer, answer


async def made_again(seen: Observer, call: str) -> bool:
    return "error" not in await seen.api(call.replace("DELETE", "INFO", 1))


@pytest.mark.allows("topology", "restored", "repeated", "superseded", "dropped", "lost")
async def test_whatever_is_removed_under_load_is_created_again_and_no_job_is_lost(
    system: System, api: Api, nats: NatsServer, database_url: str
) -> None:
    system.env["HEIMDEX_MOCK_TIME_SCALE"] = "0.02"
    system.start_all()
    await system.ready()
    async with Observer(nats.url, "nothing") as seen, Load([system.url], per_second=20) as load:
        for call in REMOVALS:
            await load.more(5)
            began = time.monotonic()
            assert "error" not in await seen.api(call)

            async def healed(call: str = call) -> bool:
                return await made_again(seen, call) and await is_ready(api)

            await eventually(healed, HEALED_WITHIN_SECONDS, f"{call} heals")
            await load.more(3)
            print(f"{call}: made again, ready and accepting after {time.monotonic() - began:.1f} s")
        await load.stop()
        ends = await load.all_end(database_url, HEALED_WITHIN_SECONDS)
        await eventually(seen.empty, HEALED_WITHIN_SECONDS, what="the stream is empty")
    assert set(ends.values()) == {"completed"}
    # The API returns the state of the rows.
    for job_id in load.accepted[-3:]:
        assert (await api.get(job_id))["status"] == "completed"


@pytest.mark.allows("topology", "restored")
async def test_a_schedule_survives_the_removal_of_its_consumer(system: System, api: Api, nats: NatsServer) -> None:
    system.start_all()
    await system.ready()
    job_id = await api.submit(delay_seconds=6)
    async with Observer(nats.url, "nothing") as seen:
        assert "error" not in await seen.api("CONSUMER.DELETE.HEIMDEX_JOBS.later")
        await api.wait_until(job_id, "completed")
        await eventually(seen.empty, what="the stream is empty")


@pytest.mark.allows("topology", "restored")
@pytest.mark.parametrize(
    "limit", [{"max_msgs": 20}, {"max_bytes": 16 * 1024}, {"max_age": 2 * 10**9, "duplicate_window": 2 * 10**9}]
)
async def test_a_limit_on_the_stream_of_jobs_is_removed_and_no_job_is_lost(
    system: System, api: Api, nats: NatsServer, database_url: str, limit: dict[str, int]
) -> None:
    system.start("gateway")
    system.start("status-store")
    await system.ready()
    async with Observer(nats.url, "nothing") as seen:
        jobs = [await api.submit() for _ in range(30)]

        async def recorded() -> bool:
            return len(await statuses(database_url, jobs)) == len(jobs)

        await eventually(recorded)
        await edit_stream(seen, JOBS, **limit)
        # What is accepted before anybody has noticed is accepted for good, too.
        jobs += [response.json()["job_id"] for response in await posts(api, 30) if response.status_code == 202]
        name = next(iter(limit))

        async def unlimited() -> bool:
            return (await seen.api(f"STREAM.INFO.{JOBS}"))["config"][name] in {-1, 0}

        await eventually(unlimited, HEALED_WITHIN_SECONDS)
        for stage in ("extracting", "analyzing", "indexing"):
            system.start(stage)
        for job_id in jobs:
            await eventually(lambda job_id=job_id: ended(api, job_id), HEALED_WITHIN_SECONDS, f"{job_id} ends")
        await eventually(seen.empty, HEALED_WITHIN_SECONDS, what="the stream is empty")


async def posts(api: Api, count: int) -> list[Any]:
    return [await api.http.post("/jobs", json={"type": "mock_process"}) for _ in range(count)]


async def ended(api: Api, job_id: str) -> bool:
    response = await api.http.get(f"/jobs/{job_id}")
    return response.status_code == 200 and response.json()["status"] == "completed"


@pytest.mark.allows("topology", "given_up", "repeated")
async def test_a_limit_of_deliveries_is_removed_and_the_affected_jobs_continue(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    system.start_all(DUTIES)
    await system.ready()
    given_up = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.HEIMDEX_JOBS.working"
    async with Observer(nats.url, given_up) as seen:
        jobs = [await api.submit("gated") for _ in range(3)]
        await eventually(lambda: len(duties.runs()) == len(jobs), what="all of them run")
        system["working"].kill()
        duties.open_gate()
        system.start("working")

        async def ran_into_it() -> bool:
            # A check may remove the limit first: set it again until NATS has given up all of these messages.
            await edit_consumer(seen, JOBS, "working", max_deliver=1)
            return len(seen.seen) >= len(jobs)

        await eventually(ran_into_it, what="NATS gives up the jobs of the killed worker")
        began = time.monotonic()
        for job_id in jobs:
            await api.wait_until(job_id, "completed")
        print(f"completed {time.monotonic() - began:.1f} s after NATS had given them up")
        await eventually(seen.empty, what="the stream is empty")

        async def unlimited() -> bool:
            return (await seen.api(f"CONSUMER.INFO.{JOBS}.working"))["config"]["max_deliver"] == -1

        await eventually(unlimited, HEALED_WITHIN_SECONDS)


# The stream is removed: the restored copy of a job and the one that a worker still holds may both be handed over.
@pytest.mark.allows("topology", "restored", "repeated", "superseded", "dropped", "lost", "stray")
@pytest.mark.parametrize(
    "change", [{"sealed": True}, {"deny_delete": True}], ids=["sealed", "deletes are denied for good"]
)
async def test_a_change_that_cannot_be_reverted_is_named_by_readyz_and_by_post(
    system: System, api: Api, nats: NatsServer, change: dict[str, Any]
) -> None:
    system.start_all()
    await system.ready()
    async with Observer(nats.url, "nothing") as seen:
        await edit_stream(seen, JOBS, **change)

        async def named() -> bool:
            answer = await api.http.post("/jobs", json={"type": "mock_process"})
            ready = await api.http.get("/readyz")
            text = answer.json().get("detail", "")
            both = (answer.status_code, ready.status_code) == (503, 503)
            # Before that NATS' own refusal, and that it is being configured again.
            return both and JOBS in text and "must be" in text and ready.json()["nats"]["detail"] == text

        await eventually(named, HEALED_WITHIN_SECONDS, "POST and /readyz answer 503 and name the stream")
        # Whoever removes the stream gets one that is as it must be.
        await seen.api(f"STREAM.DELETE.{JOBS}")
        await eventually(lambda: is_ready(api), HEALED_WITHIN_SECONDS)
        await api.wait_until(await api.submit(), "completed")
