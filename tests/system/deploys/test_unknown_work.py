"""Jobs that no worker knows: they are failed in the end, and have everything that a retry needs."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from heimdex_contracts import messages, subjects
from heimdex_contracts.job_spec import spec_of
from heimdex_contracts.messages import Due, Refusal
from tests.support.api import Api
from tests.support.histories import due
from tests.support.pipelines.deployed import RUNS, declared, runs
from tests.support.rows import fetch
from tests.support.servers import NatsServer
from tests.support.services import LAUNCHERS, System
from tests.support.waiting import eventually
from tests.support.watching import JOBS, Observer
from tests.system.api.asking import cancel, retry
from tests.system.api.sse import history

pytestmark = pytest.mark.allows("refused", "topology")

OLD = declared({"film": ("cut", "mix")})
NEW = declared({"film": ("cut", "mix"), "song": ("mix", "print")})


async def refuse(seen: Observer, job: Due, step: int = 0) -> None:
    """Report that a worker has refused this job, as the worker does."""
    refusal = Refusal(
        job_id=job.job_id, type=job.type, step=step, stage=job.stage, at=messages.now(), delay_seconds=60.0
    )
    await seen.nc.publish(subjects.refusal_subject(job.stage, job.job_id), messages.encode(refusal))
    await seen.nc.flush()


async def refuse_until(seen: Observer, job: Due, done: Any) -> None:
    """Report a refusal again and again until `done` returns true."""

    async def once() -> bool:
        await refuse(seen, job)
        await asyncio.sleep(0.1)
        return bool(await done())

    await eventually(once)


async def submit_by_hand(seen: Observer, **unknown: Any) -> Due:
    """Publish a job of the type `song` at `mix`, with these fields of a newer release, and return it."""
    job = due(type="song", stage="mix", route=("mix", "print"), created_at=messages.now(), at=messages.now())
    payload = json.dumps({**json.loads(messages.encode(job)), **unknown}).encode()
    await seen.nc.request(subjects.job_subject(job.stage, job.job_id), payload)
    return job


async def refused_rows(database_url: str) -> list[dict[str, Any]]:
    return await fetch(database_url, "SELECT job_id::text, step, type, stage, first_at FROM refusals")


async def test_a_job_that_no_worker_knows_is_failed_and_a_retry_completes_it_on_one_that_does(
    system: System, api: Api, nats: NatsServer, scratch: Path
) -> None:
    system.env |= {**OLD, RUNS: str(scratch / "runs"), "HEIMDEX_UNKNOWN_AFTER_SECONDS": "1"}
    system.start("gateway", env=NEW)
    for name in ("status-store", "cut", "mix"):
        system.start(name)
    await system.ready()
    job_id = await api.submit("song")
    job = await api.wait_until(job_id, "failed")
    assert (job["stage"], job["progress"]) == ("mix", 0)
    for part in ("mix did not run", "no worker knows the job type 'song'", "HEIMDEX_PIPELINES", "retry"):
        assert part in job["error"]
    async with Observer(nats.url, "heimdex-nothing") as seen:
        await eventually(seen.empty, what="neither the job nor its end is left")
        assert (await seen.api("STREAM.INFO.HEIMDEX_UNUSABLE"))["state"]["messages"] == 0
    submitted, failed = await history(api, job_id)
    assert (submitted["event"], failed["event"], failed["ended"]) == ("submitted", "failed", None)
    film = await api.submit("film")
    await api.wait_until(film, "completed")
    await system["mix"].terminate()
    system.start("mix", env=NEW)
    system.start("print", env=NEW)
    await system.ready()
    await retry(api, job_id)
    await api.wait_until(job_id, "completed")
    assert [stage for job, stage, _ in runs(scratch) if job == job_id] == ["mix", "print"]
    (entry,) = system["status-store"].logged("jobs_refused")
    assert (entry["type"], entry["stage"], entry["job_id"]) == ("song", "mix", job_id)
    (entry,) = system["status-store"].logged("unknown_job_failed")
    assert entry["job_id"] == job_id


async def test_the_first_refusal_counts_across_restarts_and_the_failed_job_has_all_its_fields(
    system: System, api: Api, nats: NatsServer, database_url: str
) -> None:
    system.env |= {**NEW, "HEIMDEX_UNKNOWN_AFTER_SECONDS": "3"}
    system.start("gateway")
    system.start("status-store")
    await system.ready()
    async with Observer(nats.url, "heimdex-stored.>") as seen:
        job = await submit_by_hand(seen, params={"source": "https://media.example/a.wav"})
        await refuse(seen, job)
        (row,) = await eventually(lambda: refused_rows(database_url)) or []
        system["status-store"].kill()
        await system.start("status-store").wait_log("ready")

        async def is_failed() -> bool:
            return (await api.get(job.job_id))["status"] == "failed"

        await refuse_until(seen, job, is_failed)
        await eventually(lambda: seen.subjects("heimdex-stored.jobs", job.job_id) == ["mix", "failed"])
        failed = seen.payloads("heimdex-stored.jobs", job.job_id)[1]
        at = msgspec.convert(failed["at"], messages.Moment)
        assert (at - row["first_at"]).total_seconds() >= 3, "no earlier"
        assert messages.now() >= at
        assert str(row["first_at"].strftime("%Y-%m-%dT%H:%M:%S")) in failed["error"], "counted from before the restart"
        assert (failed["route"], failed["params"]) == (["mix", "print"], {"source": "https://media.example/a.wav"})
        await eventually(seen.empty)
    (kept,) = await fetch(database_url, "SELECT params::text FROM jobs")
    assert json.loads(kept["params"]) == {"source": "https://media.example/a.wav"}

    async def removed() -> bool:
        return not await refused_rows(database_url)

    await eventually(removed, what="the row of a job that went on is deleted")


async def test_two_stores_end_a_job_once_and_one_that_went_on_is_left_alone(
    system: System, api: Api, nats: NatsServer
) -> None:
    system.env |= {**NEW, "HEIMDEX_UNKNOWN_AFTER_SECONDS": "1"}
    for name in ("gateway", "status-store", "status-store"):
        system.start(name)
    await system.ready()
    async with Observer(nats.url, "heimdex-stored.>") as seen:
        jobs = [await submit_by_hand(seen) for _ in range(5)]
        canceled, *others = jobs
        await refuse(seen, canceled)
        await cancel(api, canceled.job_id)

        async def are_failed() -> bool:
            for job in jobs:
                await refuse(seen, job)
            return all([(await api.get(job.job_id))["status"] == "failed" for job in others])

        await eventually(are_failed)
        await eventually(seen.empty)
        for job in others:
            assert seen.subjects("heimdex-stored.jobs", job.job_id) == ["mix", "failed"]
        assert seen.subjects("heimdex-stored.jobs", canceled.job_id) == ["mix", "canceled"]
    assert (await api.get(canceled.job_id))["status"] == "canceled"


async def test_a_refused_message_that_its_jobs_end_left_behind_is_deleted(
    system: System, api: Api, nats: NatsServer
) -> None:
    """As if the store had been killed after the terminal event was stored, and before it deleted the message."""
    system.env |= {**NEW, "HEIMDEX_UNKNOWN_AFTER_SECONDS": "3600"}
    system.start("gateway")
    system.start("status-store")
    await system.ready()
    async with Observer(nats.url, "heimdex-nothing") as seen:
        job = await submit_by_hand(seen)
        await api.wait_until_listed([job.job_id])
        failed = messages.Failed(
            job_id=job.job_id,
            type=job.type,
            created_at=job.created_at,
            step=1,
            at=messages.now(),
            stage="mix",
            attempt=0,
            error="no worker knows it",
        )
        await seen.nc.request(subjects.job_subject("failed", job.job_id), messages.encode(failed))
        await api.wait_until_listed([job.job_id], status="failed")
        await eventually(lambda: _count(seen, 1), what="the end is recorded, and its predecessor is left")
        await refuse_until(seen, job, seen.empty)
    assert (await api.get(job.job_id))["error"] == "no worker knows it"


async def test_a_job_that_a_worker_has_run_since_is_not_failed_yet(
    system: System, api: Api, nats: NatsServer, database_url: str
) -> None:
    system.env |= {**NEW, "HEIMDEX_UNKNOWN_AFTER_SECONDS": "3"}
    system.start("gateway")
    system.start("status-store")
    await system.ready()
    async with Observer(nats.url, "heimdex-stored.>") as seen:
        job = await submit_by_hand(seen)
        await refuse(seen, job)
        (row,) = await eventually(lambda: refused_rows(database_url)) or []
        await asyncio.sleep(max(0.0, 2 - (messages.now() - row["first_at"]).total_seconds()))
        tick = messages.Progress(
            **spec_of(job, messages.Progress), step=0, stage="mix", attempt=1, progress=5, at=messages.now()
        )
        await seen.nc.request(subjects.progress_subject("mix", job.job_id), messages.encode(tick))
        claim = messages.Claim(
            job_id=job.job_id, step=0, stage="mix", attempt=2, token="some", started_at=tick.at, ended=True
        )
        await seen.nc.request(subjects.checkpoint_subject("mix", job.job_id), messages.encode(claim))
        await api.wait_until(job.job_id, "processing")

        async def is_failed() -> bool:
            return (await api.get(job.job_id))["status"] == "failed"

        await refuse_until(seen, job, is_failed)
        failed = seen.payloads("heimdex-stored.jobs", job.job_id)[1]
        assert (msgspec.convert(failed["at"], messages.Moment) - tick.at).total_seconds() >= 3
        await eventually(lambda: seen.empty("HEIMDEX_CHECKPOINTS"), what="its claim is removed")


@pytest.mark.parametrize("start_from", ["failed", "start"])
async def test_a_cancel_and_a_retry_keep_the_fields_that_only_a_newer_release_knows(
    system: System, api: Api, nats: NatsServer, start_from: str
) -> None:
    system.env |= NEW
    system.start("gateway")
    system.start("status-store")
    await system.ready()
    async with Observer(nats.url, "heimdex-stored.>") as seen:
        job = await submit_by_hand(seen, priority={"level": 7})
        await cancel(api, job.job_id)
        await retry(api, job.job_id, f"?from={start_from}")
        await eventually(lambda: len(seen.payloads("heimdex-stored.jobs", job.job_id)) == 3)
        payloads = seen.payloads("heimdex-stored.jobs", job.job_id)
    assert [payload["event"] for payload in payloads] == ["due", "canceled", "due"]
    assert [payload["priority"] for payload in payloads] == [{"level": 7}] * 3
    assert payloads[2]["route"] == ["mix", "print"]


async def _count(seen: Observer, number: int) -> bool:
    return await seen.count(JOBS) == number


async def test_the_store_reports_how_many_jobs_are_refused(system: System, api: Api, nats: NatsServer) -> None:
    system.env |= NEW
    system.start("gateway")
    system.start("status-store")
    await system.ready()
    async with Observer(nats.url, "heimdex-nothing") as seen:
        for _ in range(3):
            await refuse(seen, await submit_by_hand(seen))

        async def reported() -> Any:
            response = await seen.nc.request("$SRV.STATS.heimdex-status-store", timeout=5)
            (endpoint,) = json.loads(response.data)["endpoints"]
            return endpoint["data"]["refused_jobs"] == [{"type": "song", "stage": "mix", "jobs": 3}]

        await eventually(reported)


@pytest.mark.full
async def test_a_refused_job_is_not_taken_for_one_that_nats_does_not_deliver(
    system: System, api: Api, nats: NatsServer, scratch: Path
) -> None:
    system.env |= {**OLD, RUNS: str(scratch / "runs")}
    system.start("gateway", env=NEW)
    system.start("status-store", launcher=LAUNCHERS / "store_that_sweeps_soon.py")
    system.start("mix")
    await system.ready()
    async with Observer(nats.url, "heimdex.refusals.>", "heimdex.jobs.>") as seen:
        job_id = await api.submit("song")
        # It is refused every 4 s and more. Three leases of 2 s without a sign of life would make it a suspect.
        await eventually(lambda: len(seen.messages("heimdex.refusals", job_id)) >= 4, timeout=150)
        assert seen.subjects("heimdex.jobs", job_id) == ["mix"]
    assert (await api.get(job_id))["status"] == "pending"
