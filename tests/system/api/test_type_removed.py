"""Jobs of a type that was removed from the gateway's pipelines: they can be retried, canceled, listed and followed."""

import asyncio
from typing import Any

from tests.support.api import Api
from tests.support.pipelines.scripted import STAGES, Script
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import JOBS, Observer
from tests.system.api.asking import cancel, retry
from tests.system.api.sse import history


async def remove_the_type(system: System) -> None:
    """Replace the gateway by one that declares `mock_process` only. The other services still declare the type."""
    assert await system["gateway"].terminate() == 0
    await system.start("gateway", {"HEIMDEX_PIPELINES": None}).wait_log("ready")


async def failed_job(api: Api, script: Script) -> str:
    """Return a job that failed at `grinding`; every stage succeeds from then on."""
    script.write("grinding", "permanent")
    job_id = await api.submit("scripted")
    await api.wait_until(job_id, "failed")
    script.clear()
    return job_id


async def test_a_failed_job_continues_along_its_route_and_cannot_run_from_the_start(
    scripted: System, api: Api, script: Script
) -> None:
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    job_id = await failed_job(api, script)
    await remove_the_type(scripted)
    refused = await retry(api, job_id, "?from=start", status=409)
    assert "'scripted'" in str(refused["detail"])
    assert "from=failed" in str(refused["detail"])
    await scripted["grinding"].terminate()  # otherwise the job may have gone on when the response is sent
    assert (await retry(api, job_id))["progress"] == 33, "one of three stages, which weigh the same here"
    scripted.start("grinding")
    response = await api.http.get(f"/jobs/{job_id}", params={"wait": 30})
    assert response.json()["status"] == "completed"
    assert response.json()["result"]["stages_completed"] == list(STAGES)
    assert [stage for stage, *_ in script.runs(job_id=job_id)] == ["preparing", "grinding", "grinding", "closing"]


async def test_many_failed_jobs_of_the_type_are_retried_with_the_others(
    scripted: System, api: Api, script: Script
) -> None:
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    jobs = [await failed_job(api, script) for _ in range(3)]
    await api.wait_until_listed(jobs, status="failed")
    await remove_the_type(scripted)
    response = await api.http.post("/jobs/retry", params={"status": "failed"})
    assert response.json() == {"retried": 3, "more": False}
    await asyncio.gather(*(api.wait_until(job_id, "completed") for job_id in jobs))


async def test_a_job_whose_stage_has_no_queue_any_more_is_not_retried_into_nowhere(
    scripted: System, api: Api, script: Script
) -> None:
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    job_id = await failed_job(api, script)
    await api.wait_until_listed([job_id], status="failed")
    for name in (*STAGES, "status-store"):
        assert await scripted[name].terminate() == 0
    await remove_the_type(scripted)
    await scripted.start("status-store", {"HEIMDEX_PIPELINES": None}).wait_log("ready")
    await delete_queue(scripted, "grinding")
    refused = await retry(api, job_id, status=409)
    assert "'grinding'" in str(refused["detail"])
    assert (await api.http.post("/jobs/retry", params={"status": "failed"})).json() == {"retried": 0, "more": False}
    assert (await api.get(job_id))["status"] == "failed"


async def delete_queue(system: System, stage: str) -> None:
    async with Observer(str(system.env["HEIMDEX_NATS_URL"])) as observer:
        assert (await observer.api(f"CONSUMER.DELETE.{JOBS}.{stage}"))["success"]


async def test_its_jobs_are_listed_and_followed_and_a_type_without_jobs_is_refused(
    scripted: System, api: Api, script: Script
) -> None:
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    job_id = await failed_job(api, script)
    await api.wait_until_listed([job_id], status="failed")
    await remove_the_type(scripted)

    async def listed(**query: str) -> Any:
        response = await api.http.get("/jobs", params=query)
        assert response.status_code == 200, response.text
        return [job["id"] for job in response.json()["jobs"]]

    assert await listed(type="scripted") == [job_id]
    assert await listed(type="scripted", status="completed") == []
    assert await listed() == [job_id]
    for method, path in (("GET", "/jobs?type=scriptde"), ("POST", "/jobs/retry?status=failed&type=scriptde")):
        response = await api.http.request(method, path)
        assert (response.status_code, response.json()["field"]) == (422, "type"), response.text
    assert (await history(api, job_id))[-1]["event"] == "failed"
    async with api.http.stream("GET", f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as stream:
        text = "".join([chunk async for chunk in stream.aiter_text()])
    assert "event: failed" in text
    response = await api.http.post("/jobs/retry", params={"status": "failed", "type": "scripted"})
    assert response.json() == {"retried": 1, "more": False}
    await api.wait_until(job_id, "completed")


async def test_a_queued_and_a_running_job_are_canceled(scripted: System, api: Api, script: Script) -> None:
    script.write("grinding", "gate")
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    running = await api.submit("scripted")
    await eventually(lambda: script.runs("grinding", running))
    later = await api.submit("scripted", delay_seconds=600)
    await remove_the_type(scripted)
    assert (await cancel(api, running))["status"] == "canceled"
    assert (await cancel(api, later))["status"] == "canceled"
    script.open_gate()
    assert [entry["event"] for entry in await history(api, later)] == ["submitted", "canceled"]
