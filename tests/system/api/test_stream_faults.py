"""The live stream while something is stopped, killed or frozen: no gap, no repeat, and the terminal event arrives."""

import asyncio
from typing import Any

import pytest

from tests.support.api import Api
from tests.support.pipelines.scripted import STAGES, Script
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer
from tests.system.api.sse import Resuming, Sent, entries, history, listen


@pytest.fixture
async def running(scripted: System, script: Script) -> System:
    script.write("grinding", "gate")
    scripted.start_all(stages=STAGES)
    await scripted.ready()
    return scripted


async def at_the_gate(api: Api, script: Script) -> str:
    job_id = await api.submit("scripted")
    await eventually(lambda: script.runs("grinding", job_id))
    return job_id


async def test_live_events_come_from_nats_and_need_no_status_store(running: System, api: Api, script: Script) -> None:
    job_id = await at_the_gate(api, script)
    received: list[Sent] = []
    async for sent in listen(api, job_id):
        if sent.id is not None:
            received.append(sent)
            if sent.data["stage"] == "grinding":
                running["status-store"].freeze()
                script.open_gate()
    assert [sent.event for sent in received] == ["submitted", "handed_over", "handed_over", "completed"]
    running["status-store"].thaw()
    await eventually(lambda: _recorded(api, job_id, received))


async def _recorded(api: Api, job_id: str, received: list[Sent]) -> bool:
    return await history(api, job_id) == [sent.data for sent in received]


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_a_history_that_is_not_recorded_yet_has_no_gap(
    running: System, api: Api, script: Script, accept: str
) -> None:
    job_id = await at_the_gate(api, script)
    running["status-store"].freeze()
    script.open_gate()
    await running["closing"].wait_log("stage_finished", job_id=job_id)
    if accept == "application/json":
        entries_now = [(entry["id"], entry["event"]) for entry in await history(api, job_id)]
    else:
        entries_now = [(str(sent.id), sent.event) for sent in await entries(api, job_id)]
    assert entries_now == [("0.0", "submitted"), ("1.0", "handed_over"), ("2.0", "handed_over"), ("3.0", "completed")]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
async def test_a_stream_resumes_without_a_gap_at_another_gateway(
    running: System, api: Api, script: Script, how: str
) -> None:
    job_id = await at_the_gate(api, script)
    caller = Resuming(api, job_id)
    following = asyncio.create_task(caller.follow())
    await eventually(lambda: len(caller.events) == 2)
    if how == "SIGTERM":
        assert await running["gateway"].terminate() == 0, "an open stream does not keep it from ending"
    else:
        running["gateway"].kill()
    script.open_gate()
    await running["closing"].wait_log("stage_finished", job_id=job_id)
    running.start("gateway")
    await asyncio.wait_for(following, 60)
    caller.check(await history(api, job_id))
    assert caller.connections > 1


@pytest.mark.allows("nats_killed")
async def test_a_stream_resumes_without_a_gap_after_a_restart_of_nats(
    running: System, api: Api, script: Script, nats: Any
) -> None:
    job_id = await at_the_gate(api, script)
    caller = Resuming(api, job_id)
    following = asyncio.create_task(caller.follow())
    await eventually(lambda: len(caller.events) == 2)
    await asyncio.to_thread(nats.kill)
    await asyncio.to_thread(nats.start)
    script.open_gate()
    await asyncio.wait_for(following, 90)
    await api.wait_until(job_id, "completed")
    caller.check(await history(api, job_id))


async def test_the_stream_has_the_hand_back_of_a_stopping_worker(running: System, api: Api, script: Script) -> None:
    running.env["HEIMDEX_SHUTDOWN_GRACE_SECONDS"] = "1"
    running["grinding"].kill()
    running.start("grinding")
    job_id = await at_the_gate(api, script)
    listening = asyncio.create_task(entries(api, job_id))
    assert await running["grinding"].terminate() == 0
    script.open_gate()
    running.start("grinding")
    received = await asyncio.wait_for(listening, 60)
    assert [sent.event for sent in received] == ["submitted", "handed_over", "handed_back", "handed_over", "completed"]
    assert [sent.data for sent in received] == await history(api, job_id)


async def test_while_postgres_is_down_the_list_and_a_recorded_history_are_500_with_a_sentence(
    new_system: Any, nats: Any, own_postgres: Any
) -> None:
    system = new_system(nats.url, own_postgres.url)
    system.start_all()
    await system.ready()
    async with Api(system.url) as api:
        job_id = await api.submit()
        await api.wait_until(job_id, "completed")
        async with Observer(nats.url) as seen:
            await eventually(seen.empty)  # otherwise the events that are still in the stream would be returned
        await asyncio.to_thread(own_postgres.kill)
        for path, accept in (
            ("/jobs", "application/json"),
            (f"/jobs/{job_id}/events", "application/json"),
            (f"/jobs/{job_id}/events", "text/event-stream"),
        ):
            response = await api.http.get(path, headers={"accept": accept})
            assert response.status_code == 500
            assert "Postgres" in response.json()["detail"]
        system.allow("not_json")


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_while_nats_is_down_a_history_and_a_stream_are_500_with_a_sentence(
    running: System, api: Api, script: Script, nats: Any, accept: str
) -> None:
    job_id = await at_the_gate(api, script)
    script.open_gate()
    await api.wait_until(job_id, "completed")
    await asyncio.to_thread(nats.kill)
    response = await api.http.get(f"/jobs/{job_id}/events", headers={"accept": accept})
    assert response.status_code == 500, response.text
    assert response.headers["content-type"].startswith("application/json")
    assert "NATS" in response.json()["detail"]
