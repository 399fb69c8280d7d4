"""Jobs that wait at a stage for which no worker asks: the status store reports them, and nothing else."""

from typing import Any

import msgspec
import pytest

from tests.support.api import Api
from tests.support.pipelines.scripted import Script
from tests.support.servers import NatsServer
from tests.support.services import LAUNCHERS, MOCK_STAGES, Service, System
from tests.support.waiting import eventually, never
from tests.support.watching import JOBS, Observer
from tests.system.api.asking import cancel

#: Many checks of the store that looks soon.
WHILE_SECONDS = 5
EVENTS = ("stage_without_worker", "stage_undeclared")


def start_store(system: System, **env: str) -> Service:
    return system.start("status-store", env, LAUNCHERS / "store_that_looks_at_stages_soon.py")


def start_worker(system: System) -> Service:
    return system.start("preparing", {"HEIMDEX_STAGE_CONCURRENCY": "2"})


async def stats(seen: Observer) -> dict[str, Any]:
    """Return the stages that the status store reports in `$SRV.STATS`."""
    answer = await seen.nc.request("$SRV.STATS.heimdex-status-store", timeout=10)
    data = msgspec.json.decode(answer.data)["endpoints"][0]["data"]
    return {name: data[name] for name in ("stages_without_workers", "undeclared_stages")}


async def queue(seen: Observer, stage: str) -> tuple[int, int, int]:
    """Return how many jobs are pending and not acknowledged at this stage, and how many requests wait there."""
    info = await seen.api(f"CONSUMER.INFO.{JOBS}.{stage}")
    return info["num_pending"], info["num_ack_pending"], info["num_waiting"]


@pytest.fixture
def scripted(system: System, script: Script) -> System:
    system.env |= script.env
    return system


async def test_a_stage_with_jobs_and_no_worker_is_reported_once_and_so_is_its_end(
    scripted: System, api: Api, nats: NatsServer
) -> None:
    scripted.start("gateway")
    store = start_store(scripted)
    await scripted.ready()
    async with Observer(nats.url, "nothing") as seen:
        assert await stats(seen) == {"stages_without_workers": [], "undeclared_stages": []}
        jobs = [await api.submit("scripted") for _ in range(3)]
        entry = await store.wait_log("stage_without_worker", stage="preparing")
        assert (entry["level"], entry["jobs"]) == ("warning", 3)
        assert "start a worker of preparing" in entry["message"]
        assert await stats(seen) == {"stages_without_workers": ["preparing"], "undeclared_stages": []}
        scripted.start("preparing")
        await store.wait_log("stage_without_worker_over", stage="preparing")
        await store.wait_log("stage_without_worker", stage="grinding")
        await eventually(lambda: _equals(seen, ["grinding"]))
        for job_id in jobs:
            await cancel(api, job_id)
        await store.wait_log("stage_without_worker_over", stage="grinding")
        assert await stats(seen) == {"stages_without_workers": [], "undeclared_stages": []}
    assert len(store.logged("stage_without_worker")) == len(store.logged("stage_without_worker_over")) == 2


async def _equals(seen: Observer, stages: list[str]) -> bool:
    return bool((await stats(seen))["stages_without_workers"] == stages)


@pytest.mark.allows("repeated")
async def test_a_busy_worker_is_not_reported_and_its_death_is_though_it_holds_every_job(
    scripted: System, api: Api, nats: NatsServer, script: Script
) -> None:
    script.write("preparing", "gate")
    scripted.start("gateway")
    worker, store = start_worker(scripted), start_store(scripted)
    await scripted.ready()
    async with Observer(nats.url, "nothing") as seen:
        jobs = [await api.submit("scripted") for _ in range(3)]

        async def full() -> bool:
            return await queue(seen, "preparing") == (1, 2, 0)

        await eventually(full)
        await never(lambda: store.logged("stage_without_worker"), WHILE_SECONDS)
        await cancel(api, jobs[2])

        async def holds_all() -> bool:
            return (await queue(seen, "preparing"))[:2] == (0, 2)

        await eventually(holds_all)
        worker.kill()
        entry = await store.wait_log("stage_without_worker", stage="preparing")
        assert entry["jobs"] == 2
        start_worker(scripted)
        await store.wait_log("stage_without_worker_over", stage="preparing")
        script.open_gate()


@pytest.mark.full
async def test_jobs_in_back_off_of_a_worker_that_lives_are_not_reported(
    scripted: System, api: Api, nats: NatsServer, script: Script
) -> None:
    script.write("preparing", "raise")
    scripted.env["HEIMDEX_RETRY_BACKOFF_SECONDS"] = "300"
    scripted.start("gateway")
    worker, store = start_worker(scripted), start_store(scripted)
    await scripted.ready()
    for _ in range(3):
        await api.submit("scripted")
    await worker.wait_log("attempt_failed", count=3)
    await never(lambda: store.logged("stage_without_worker"), WHILE_SECONDS)


async def test_jobs_at_a_stage_that_no_pipeline_declares_are_reported(
    scripted: System, api: Api, nats: NatsServer
) -> None:
    scripted.start("gateway")
    old = start_store(scripted)
    await scripted.ready()
    job_id = await api.submit("scripted")
    await api.wait_until_listed([job_id], status="pending")
    await old.terminate()
    store = start_store(scripted, HEIMDEX_PIPELINES="heimdex_contracts.mock_process")
    async with Observer(nats.url, "nothing") as seen:
        entry = await store.wait_log("stage_undeclared", stage="preparing")
        assert (entry["level"], entry["jobs"]) == ("warning", 1)
        assert await stats(seen) == {"stages_without_workers": [], "undeclared_stages": ["preparing"]}
        scripted.start("preparing")  # a worker that still knows the stage
        await store.wait_log("stage_undeclared_over", stage="preparing")
        # Its next stage has neither a worker nor a declaration.
        await store.wait_log("stage_undeclared", stage="grinding")
        assert len(store.logged("stage_undeclared")) == 2


async def test_other_consumers_idle_stages_and_scheduled_jobs_are_not_reported(
    scripted: System, api: Api, nats: NatsServer
) -> None:
    scripted.start("gateway")
    store = start_store(scripted)
    await scripted.ready()
    async with Observer(nats.url, "nothing") as seen:
        for name, subject in (("mine", "heimdex.jobs.*.*"), ("yours", "heimdex.jobs.preparing.*")):
            config = {"durable_name": name, "ack_policy": "explicit", "filter_subject": subject}
            await seen.api(f"CONSUMER.CREATE.{JOBS}.{name}", {"stream_name": JOBS, "config": config})
        await api.submit("scripted", delay_seconds=600)

        async def waits() -> bool:
            return (await queue(seen, "mine"))[0] == 1

        await eventually(waits)
        await never(lambda: [entry for event in EVENTS for entry in store.logged(event)], WHILE_SECONDS)


@pytest.mark.allows("topology")
@pytest.mark.full
async def test_an_outage_changes_nothing_about_what_was_reported(scripted: System, api: Api, nats: NatsServer) -> None:
    scripted.start("gateway")
    store = start_store(scripted)
    await scripted.ready()
    await api.submit("scripted")
    await store.wait_log("stage_without_worker", stage="preparing")
    nats.stop()
    await store.wait_log("stages_not_checked")
    nats.start()
    await store.wait_log("nats_reconnected")
    await never(lambda: store.logged("stage_without_worker_over"), WHILE_SECONDS)
    assert len(store.logged("stage_without_worker")) == 1
    for stage in MOCK_STAGES:
        assert not store.logged("stage_without_worker", stage=stage)
