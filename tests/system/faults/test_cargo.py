"""Parameters and outputs through every fault, byte for byte: a job carries what it was given, and no other's."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Api
from tests.support.pipelines import with_pipelines
from tests.support.pipelines.cargo import cargo, expected
from tests.support.rows import execute, fetch
from tests.support.servers import NatsServer
from tests.support.services import LAUNCHERS, MOCK_STAGES, System
from tests.support.waiting import eventually
from tests.support.watching import JOBS, Observer
from tests.system.api.asking import cancel

#: The two sizes of what a stage returns: one that Postgres keeps within the row, and one near the limit.
SIZES = [200, 9000]


@pytest.fixture
def carrying(system: System) -> System:
    """A system of this test that knows the type `carrying`. No service is started yet."""
    system.env |= with_pipelines("cargo")
    return system


async def submit(api: Api, seed: int, size: int = 200, **fields: Any) -> str:
    # Without the defaults, which the gateway fills in.
    return await api.submit("carrying", params={"seed": seed, "size": size}, **fields)


async def carried(api: Api, job_id: str) -> dict[str, Any]:
    """Return the job with its parameters and outputs."""
    response = await api.http.get(f"/jobs/{job_id}", params={"include": "params,outputs"})
    assert response.status_code == 200, response.text
    job: dict[str, Any] = response.json()
    return job


async def check_completed(api: Api, job_id: str, seed: int, size: int = 200) -> None:
    """Wait until the job is completed, and compare all that it carries."""
    await api.wait_until(job_id, "completed")
    job = await carried(api, job_id)
    outputs = expected(cargo(seed, size))
    assert job["params"] == cargo(seed, size)
    assert job["outputs"] == outputs
    assert job["result"]["output"] == outputs["indexing"]


async def check_recorded(api: Api, database_url: str, nats: NatsServer, job_id: str) -> None:
    """Assert that the recorded job carries the same when nothing of it is left in the stream."""
    before = await carried(api, job_id)
    async with Observer(nats.url, "heimdex-nothing") as seen:
        await eventually(seen.empty, what="the stream is empty")
    assert await carried(api, job_id) == before
    (row,) = await fetch(database_url, "SELECT message, params FROM jobs WHERE id = $1::text::uuid", job_id)
    assert (row["message"], row["params"] is not None) == (None, True)


@pytest.mark.allows("repeated")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", MOCK_STAGES)
@pytest.mark.parametrize("launcher", ["worker_dies_before_handler", "dies_before_ack"])
async def test_a_killed_worker_loses_nothing_of_what_its_job_carries(
    carrying: System,
    api: Api,
    nats: NatsServer,
    database_url: str,
    died: Path,
    stage: str,
    launcher: str,
    size: int,
) -> None:
    carrying.start_all(without=(stage,))
    first = carrying.start(stage, launcher=LAUNCHERS / f"{launcher}.py")
    await carrying.ready()
    job_id = await submit(api, 17, size)
    assert await first.ended() == -9
    carrying.start(stage)
    await check_completed(api, job_id, 17, size)
    await check_recorded(api, database_url, nats, job_id)


@pytest.mark.allows("repeated", "superseded", "dropped")
async def test_a_thawed_worker_replaces_no_output(carrying: System, api: Api, nats: NatsServer) -> None:
    carrying.env["HEIMDEX_MOCK_TIME_SCALE"] = "0.4"
    carrying.start_all()
    await carrying.ready()
    frozen = carrying["analyzing"]
    job_id = await submit(api, 3)
    await frozen.wait_log("attempt_started", job_id=job_id)
    frozen.freeze()
    carrying.start("analyzing")
    await check_completed(api, job_id, 3)
    before = await carried(api, job_id)
    frozen.thaw()
    await eventually(
        lambda: frozen.logged("delivery_superseded", job_id=job_id) or frozen.logged("delivery_dropped", job_id=job_id)
    )
    assert await carried(api, job_id) == before


async def test_a_job_that_is_handed_back_keeps_what_it_carries(carrying: System, api: Api) -> None:
    carrying.env |= {"HEIMDEX_MOCK_TIME_SCALE": "1", "HEIMDEX_SHUTDOWN_GRACE_SECONDS": "3"}
    carrying.start_all()
    await carrying.ready()
    job_id = await submit(api, 5, SIZES[1])
    await carrying["analyzing"].wait_log("attempt_started", job_id=job_id)
    stopped = carrying["analyzing"]
    stopped.ask_to_stop()
    carrying.start("analyzing", {"HEIMDEX_MOCK_TIME_SCALE": "0"})
    assert await stopped.ended() == 0
    await check_completed(api, job_id, 5, SIZES[1])
    kinds = [entry["event"] for entry in await api.history(job_id)]
    assert "handed_back" in kinds


@pytest.mark.parametrize("size", SIZES)
async def test_a_retry_keeps_the_outputs_of_the_stages_before_it(carrying: System, api: Api, size: int) -> None:
    carrying.start_all(without=("analyzing",))
    await carrying.ready()
    job_id = await submit(api, 8, size)

    async def extracted() -> bool:
        return "extracting" in (await carried(api, job_id))["outputs"]

    await eventually(extracted, what="the first stage has returned its output")
    extracting = expected(cargo(8, size))["extracting"]
    canceled = await cancel(api, job_id)
    assert canceled["status"] == "canceled"
    job = await carried(api, job_id)
    assert (job["params"], job["outputs"]) == (cargo(8, size), {"extracting": extracting})
    await carrying["extracting"].terminate()
    retried = await api.http.post(f"/jobs/{job_id}/retry", params={"include": "params,outputs"})
    assert retried.json()["outputs"] == {"extracting": extracting}
    assert retried.json()["params"] == cargo(8, size)
    carrying.start("analyzing")
    await check_completed(api, job_id, 8, size)


async def test_a_retry_from_the_start_drops_the_outputs(carrying: System, api: Api) -> None:
    carrying.start_all()
    await carrying.ready()
    job_id = await submit(api, 9, fail_at_stage="analyzing")
    await api.wait_until(job_id, "failed")
    job = await carried(api, job_id)
    assert job["outputs"] == {"extracting": expected(cargo(9, 200))["extracting"]}
    await carrying["extracting"].terminate()
    retried = await api.http.post(f"/jobs/{job_id}/retry", params={"include": "outputs,params", "from": "start"})
    assert (retried.json()["outputs"], retried.json()["params"]) == ({}, cargo(9, 200))
    assert (await carried(api, job_id))["outputs"] == {}
    carrying.start("extracting")
    await api.wait_until(job_id, "failed")
    assert (await carried(api, job_id))["outputs"] == job["outputs"]


@pytest.mark.allows("restored", "topology", "nats_killed")
@pytest.mark.parametrize("size", SIZES)
async def test_jobs_are_restored_with_what_they_carry_when_nats_has_lost_its_disk(
    carrying: System, api: Api, nats: Any, size: int
) -> None:
    carrying.start_all(without=("analyzing", "extracting"))
    await carrying.ready()
    waiting = await submit(api, 20, size)
    await api.wait_until_listed([waiting])
    carrying.start("extracting")
    halfway = await submit(api, 21, size)
    later = await submit(api, 22, size, delay_seconds=5)
    await api.wait_until_listed([waiting, halfway], status="processing")
    await api.wait_until_listed([later], status="pending")
    await asyncio.to_thread(nats.kill)
    nats.wipe()
    await asyncio.to_thread(nats.start)
    carrying.start("analyzing")
    for job_id, seed in ((waiting, 20), (halfway, 21), (later, 22)):
        await check_completed(api, job_id, seed, size)


@pytest.mark.parametrize("size", SIZES)
async def test_an_emptied_database_is_filled_again_with_what_the_jobs_carry(
    carrying: System, api: Api, nats: NatsServer, database_url: str, size: int
) -> None:
    carrying.start_all(without=("analyzing", "status-store"))
    carrying.start("status-store", launcher=LAUNCHERS / "store_that_sweeps_soon.py")
    await carrying.ready()
    halfway, canceled = await submit(api, 30, size), await submit(api, 31, size)
    await api.wait_until_listed([halfway, canceled], status="processing")
    await execute(database_url, "TRUNCATE jobs, job_events")
    await api.wait_until_listed([halfway, canceled], status="processing")
    rows = await fetch(database_url, "SELECT params::text FROM jobs WHERE params IS NOT NULL")
    assert len(rows) == 2
    await cancel(api, canceled)
    async with Observer(nats.url, "heimdex-nothing") as seen:
        held = await seen.api(f"STREAM.INFO.{JOBS}")
        assert held["state"]["messages"]
    assert (await carried(api, canceled))["outputs"] == {"extracting": expected(cargo(31, size))["extracting"]}
    await api.http.post(f"/jobs/{canceled}/retry")
    carrying.start("analyzing")
    await check_completed(api, halfway, 30, size)
    await check_completed(api, canceled, 31, size)


async def test_a_batch_by_two_stores_and_a_rolling_deploy_of_the_workers(
    carrying: System, api: Api, nats: NatsServer, database_url: str
) -> None:
    carrying.env["HEIMDEX_MOCK_TIME_SCALE"] = "0.05"
    carrying.start_all()
    carrying.start("status-store")
    await carrying.ready()
    seeds = range(100, 140)
    jobs = [{"type": "carrying", "params": {"seed": seed, "size": seed * 10}} for seed in seeds]
    response = await api.http.post("/jobs/batch", json={"jobs": [*jobs, {"type": "mock_process"}]})
    assert response.status_code == 202, response.text
    *job_ids, plain = response.json()["job_ids"]
    for stage in MOCK_STAGES:
        old = carrying[stage]
        await carrying.start(stage).wait_log("ready")
        assert await old.terminate() == 0
    for job_id, seed in zip(job_ids, seeds, strict=True):
        await check_completed(api, job_id, seed, seed * 10)
    await api.wait_until(plain, "completed")
    job = await carried(api, plain)
    assert (job["params"], job["outputs"], job["result"]["output"]) == ({}, dict.fromkeys(MOCK_STAGES), None)
    await check_recorded(api, database_url, nats, job_ids[0])
