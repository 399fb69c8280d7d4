"""A job whose messages are gone from the stream: it can be canceled, and is published again if a stage can take it."""

import asyncio
import json
from pathlib import Path

import pytest

from heimdex_contracts import messages, subjects
from tests.support.api import Api
from tests.support.histories import due
from tests.support.pipelines.scripted import STAGES, Script
from tests.support.servers import NatsServer
from tests.support.services import LAUNCHERS, System
from tests.support.waiting import eventually
from tests.support.watching import JOBS, Observer
from tests.system.api.asking import cancel
from tests.system.api.sse import history

SWEEPS_SOON = LAUNCHERS / "store_that_sweeps_soon.py"


@pytest.fixture
def scripted(system: System, script: Script) -> System:
    """A system of this test whose stages follow `script`. No service is started yet."""
    system.env |= script.env
    return system


async def queued_job(system: System, api: Api, launcher: Path | None = None) -> str:
    """Start a gateway, a status store and the later stages; return a job that waits at `preparing`, recorded."""
    system.start_all(stages=STAGES, without=("preparing", "status-store", "gateway"))
    system.start("gateway", launcher=launcher)
    system.start("status-store", launcher=SWEEPS_SOON)
    await system.ready()
    job_id = await api.submit("scripted")
    await api.wait_until_listed([job_id])
    return job_id


async def lose_messages(seen: Observer, job_id: str) -> None:
    """Delete the job's messages from the stream."""
    message = (await seen.api(f"STREAM.MSG.GET.{JOBS}", {"last_by_subj": f"heimdex.jobs.*.{job_id}"}))["message"]
    assert (await seen.api(f"STREAM.MSG.DELETE.{JOBS}", {"seq": message["seq"], "no_erase": True}))["success"]


async def test_a_job_at_a_stage_that_was_removed_is_not_published_again_and_can_be_canceled(
    scripted: System, api: Api, nats: NatsServer
) -> None:
    job_id = await queued_job(scripted, api)
    for name in ("gateway", "status-store", *STAGES[1:]):
        assert await scripted[name].terminate() == 0
    async with Observer(nats.url, "heimdex-stored.>") as seen:
        assert (await seen.api(f"CONSUMER.DELETE.{JOBS}.preparing"))["success"]
        await eventually(seen.empty, what="without its queue, NATS drops the message")
        for name, launcher in (("gateway", None), ("status-store", SWEEPS_SOON)):
            scripted.start(name, {"HEIMDEX_PIPELINES": None}, launcher)
        await scripted.ready()
        await scripted["status-store"].wait_log("stage_without_queue", stage="preparing")
        assert (await api.get(job_id))["status"] == "pending"
        job = await cancel(api, job_id)
        assert (job["status"], job["stage"], job["progress"]) == ("canceled", None, 0)
        assert job == await api.get(job_id)
        await eventually(seen.empty, what="the cancel is recorded")
        assert seen.subjects("heimdex-stored.jobs", job_id) == ["canceled"]
    assert [entry["event"] for entry in await history(api, job_id)] == ["submitted", "canceled"]


@pytest.mark.allows("restored", "topology")
async def test_a_job_at_a_stage_that_is_declared_again_is_published_again(
    scripted: System, api: Api, nats: NatsServer
) -> None:
    job_id = await queued_job(scripted, api)
    for name in ("gateway", "status-store", *STAGES[1:]):
        assert await scripted[name].terminate() == 0
    async with Observer(nats.url, "heimdex-nothing") as seen:
        assert (await seen.api(f"CONSUMER.DELETE.{JOBS}.preparing"))["success"]
        await eventually(seen.empty)
        store = scripted.start("status-store", {"HEIMDEX_PIPELINES": None}, SWEEPS_SOON)
        await store.wait_log("stage_without_queue", stage="preparing")
    scripted.start_all(stages=STAGES, without=("status-store",))
    await scripted.ready()
    await api.wait_until(job_id, "completed")


@pytest.mark.allows("restored")
async def test_a_cancel_that_races_with_the_restoration_of_the_job_cancels_what_is_restored(
    scripted: System, api: Api, nats: NatsServer, scratch: Path
) -> None:
    go_on = scratch / "go-on"
    scripted.env["TEST_GO_ON"] = str(go_on)
    job_id = await queued_job(scripted, api, LAUNCHERS / "gateway_that_waits_before_a_change.py")
    async with Observer(nats.url, "heimdex-stored.>") as seen:
        scripted["status-store"].freeze()
        await lose_messages(seen, job_id)
        canceling = asyncio.create_task(cancel(api, job_id))
        await eventually(go_on.with_suffix(".waiting").exists)
        scripted["status-store"].thaw()
        await scripted["status-store"].wait_log("job_restored", job_id=job_id)
        go_on.touch()
        assert (await canceling)["status"] == "canceled"
        await eventually(seen.empty)
        assert seen.subjects("heimdex-stored.jobs", job_id) == ["preparing", "canceled"]
    scripted.start("preparing")
    await scripted.ready()
    await api.wait_until(await api.submit("scripted"), "completed")
    assert [entry["event"] for entry in await history(api, job_id)] == ["submitted", "restored", "canceled"]


async def test_a_worker_that_still_runs_the_job_is_interrupted_and_hands_nothing_over(
    scripted: System, api: Api, nats: NatsServer, script: Script
) -> None:
    script.write("preparing", "gate")
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    job_id = await api.submit("scripted")
    await eventually(lambda: script.runs("preparing", job_id))
    await api.wait_until_listed([job_id])
    worker = scripted["preparing"]
    async with Observer(nats.url, "heimdex-stored.>") as seen:
        scripted.allow("superseded", job_id=job_id)
        await lose_messages(seen, job_id)
        worker.freeze()
        script.open_gate()
        job = await cancel(api, job_id)
        assert (job["status"], job["stage"]) == ("canceled", "preparing")
        await eventually(seen.empty, what="the cancel is recorded")
        worker.thaw()
        await api.wait_until(await api.submit("scripted"), "completed")
        assert seen.subjects("heimdex-stored.jobs", job_id) == ["canceled"]
    assert await api.get(job_id) == job


@pytest.mark.allows("restored")
async def test_a_restored_job_has_the_fields_that_only_a_newer_release_knows(
    scripted: System, api: Api, nats: NatsServer
) -> None:
    await queued_job(scripted, api)
    job = due(type="scripted", stage="preparing", route=STAGES)
    payload = {**json.loads(messages.encode(job)), "params": {"source": "https://media.example/film.mp4"}}
    async with Observer(nats.url, "heimdex-stored.>") as seen:
        await seen.nc.request(subjects.job_subject(job.stage, job.job_id), json.dumps(payload).encode())
        await api.wait_until_listed([job.job_id])
        await lose_messages(seen, job.job_id)
        await scripted["status-store"].wait_log("job_restored", job_id=job.job_id)
        await eventually(lambda: len(seen.payloads("heimdex-stored.jobs", job.job_id)) == 2)
        restored = seen.payloads("heimdex-stored.jobs", job.job_id)[1]
    assert (restored["reason"], restored["params"]) == ("restored", payload["params"])
