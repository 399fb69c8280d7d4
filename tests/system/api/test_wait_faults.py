"""Waiting for a job's terminal state while something is stopped or frozen."""

import asyncio

import httpx

from tests.support.api import Api
from tests.support.pipelines.scripted import STAGES, Script
from tests.support.services import System
from tests.support.waiting import eventually


async def test_a_terminal_event_that_is_not_recorded_yet_ends_the_wait(
    scripted: System, api: Api, script: Script
) -> None:
    script.write("preparing", "gate")
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    job_id = await api.submit("scripted")
    await eventually(lambda: script.runs("preparing", job_id))
    await api.http.get(f"/jobs/{job_id}/events")  # from Postgres: it has the job
    scripted["gateway"].kill()
    await scripted.start("gateway").wait_log("ready")  # and it has returned nothing that Postgres does not have
    await api.get(job_id)
    scripted["status-store"].freeze()
    script.open_gate()
    await scripted["closing"].wait_log("stage_finished", job_id=job_id)
    # The terminal event was published already: a wait for that message would never end.
    response = await api.http.get(f"/jobs/{job_id}", params={"wait": "120"}, timeout=60)
    assert response.json()["status"] == "completed"


async def test_a_stopping_gateway_answers_the_pending_waits(scripted: System, api: Api) -> None:
    scripted.start_all(stages=())
    await scripted.ready()
    job_id = await api.submit("scripted")
    waiting = asyncio.create_task(api.http.get(f"/jobs/{job_id}", params={"wait": "120"}, timeout=130))

    async def under_way() -> bool:
        # Whoever was accepted before this answer is being served.
        await api.get(job_id)
        return len(scripted["gateway"].logged("ready")) == 1 and not waiting.done()

    await eventually(under_way)
    code = await scripted["gateway"].terminate()
    response = await asyncio.wait_for(waiting, 60)
    assert (response.status_code, response.json()["status"]) == (200, "pending")
    assert code == 0


async def test_a_silent_stream_is_kept_alive_by_comments(system: System, api: Api) -> None:
    system.start_all(stages=())
    await system.ready()
    job_id = await api.submit("mock_process")
    heard = b""
    headers = {"accept": "text/event-stream"}
    async with api.http.stream("GET", f"/jobs/{job_id}/events", headers=headers, timeout=httpx.Timeout(60)) as response:
        async for chunk in response.aiter_bytes():
            heard += chunk
            if b"\n: " in heard:
                break
    assert (await api.http.post(f"/jobs/{job_id}/cancel")).status_code == 200
