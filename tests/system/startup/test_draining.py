"""SIGTERM under load: exit code 0, and no accepted job is lost or loses an attempt."""

import asyncio
import signal

import httpx
import pytest

from tests.support.api import Api
from tests.support.servers import NatsServer
from tests.support.services import LAUNCHERS, MOCK_STAGES, System
from tests.support.waiting import eventually
from tests.support.watching import Observer


@pytest.mark.parametrize(
    "service",
    ["status-store", MOCK_STAGES[0], *(pytest.param(stage, marks=pytest.mark.full) for stage in MOCK_STAGES[1:])],
)
async def test_a_service_that_is_stopped_under_load_exits_with_0_and_loses_nothing(
    system: System, api: Api, nats: NatsServer, service: str
) -> None:
    system.env |= {"HEIMDEX_MOCK_TIME_SCALE": "0.2", "HEIMDEX_STAGE_CONCURRENCY": "10"}
    system.start_all()
    await system.ready()
    async with Observer(nats.url) as seen:
        job_ids = [await api.submit() for _ in range(60)]
        done = "heimdex.jobs.completed."
        await eventually(lambda: any(msg.subject.startswith(done) for msg in seen.seen))
        stopping = system[service]
        system.start(service)  # as a deployment does: the next one starts while this one ends
        assert await stopping.terminate() == 0
        for job_id in job_ids:
            await api.wait_until(job_id, "completed", timeout=60)
        await eventually(seen.empty, what="the stream HEIMDEX_JOBS is empty")
        # Interrupted is not failed: no retry was used up, and every hand-over happened exactly once.
        assert not [msg for msg in seen.seen if msg.subject.startswith("heimdex.attempts.")]
        for job_id in job_ids:
            stages = seen.subjects("heimdex.jobs", job_id)
            assert sorted(set(stages)) == sorted([*MOCK_STAGES, "completed"])
            again = [event for event in seen.payloads("heimdex.jobs", job_id) if event.get("reason") == "handed_back"]
            assert len(stages) == 4 + len(again)
            assert all(event.get("attempts", 0) == 0 for event in again)
    assert not stopping.logged("left_to_redelivery")


async def test_a_gateway_that_is_stopped_under_load_finishes_its_requests_and_its_jobs_complete(
    system: System,
) -> None:
    system.start_all()
    await system.ready()
    accepted: list[str] = []
    over = asyncio.Event()

    async def client() -> None:
        async with Api(system.url) as api:
            while not over.is_set():
                try:
                    response = await api.http.post("/jobs", json={"type": "mock_process"})
                except httpx.TransportError:
                    await asyncio.sleep(0.05)  # nobody listens: refused, not accepted
                    continue
                assert response.status_code == 202, response.text
                accepted.append(response.json()["job_id"])

    clients = [asyncio.create_task(client()) for _ in range(8)]
    await eventually(lambda: len(accepted) > 30)
    assert await system["gateway"].terminate() == 0
    before = len(accepted)
    await system.start("gateway").wait_log("ready")
    await eventually(lambda: len(accepted) > before + 10)
    over.set()
    await asyncio.gather(*clients)
    async with Api(system.url) as api:
        for job_id in accepted:
            await api.wait_until(job_id, "completed")


async def test_work_longer_than_the_grace_period_is_handed_back_and_done_by_the_next_worker(
    system: System, api: Api, nats: NatsServer
) -> None:
    system.env |= {"HEIMDEX_SHUTDOWN_GRACE_SECONDS": "2", "HEIMDEX_ACK_WAIT_SECONDS": "60"}
    system.start_all(without=("analyzing",))
    slow = system.start("analyzing", env={"HEIMDEX_MOCK_TIME_SCALE": "100"})
    await system.ready()
    async with Observer(nats.url) as seen:
        job_ids = [await api.submit() for _ in range(5)]
        for job_id in job_ids:
            await eventually(lambda job_id=job_id: "analyzing" in seen.subjects("heimdex.progress", job_id))
        assert await slow.terminate() == 0
        system.start("analyzing")
        for job_id in job_ids:
            # With an ack wait of 60 s, only a hand-back can bring it to the next worker now.
            await api.wait_until(job_id, "completed", timeout=30)
            assert seen.subjects("heimdex.jobs", job_id) == [
                "extracting",
                "analyzing",
                "analyzing",
                "indexing",
                "completed",
            ]
            assert seen.subjects("heimdex.attempts", job_id) == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
async def test_a_closed_terminal_and_ctrl_c_stop_every_service_in_order(
    system: System, api: Api, nats: NatsServer, number: signal.Signals
) -> None:
    system.env |= {"HEIMDEX_MOCK_TIME_SCALE": "100", "HEIMDEX_SHUTDOWN_GRACE_SECONDS": "1"}
    system.start_all(stages=("extracting",))
    await system.ready()
    async with Observer(nats.url) as seen:
        job_id = await api.submit()
        await eventually(lambda: seen.subjects("heimdex.progress", job_id))
        for name in ("extracting", "gateway", "status-store"):
            system[name].ask_to_stop(number)
        for name in ("extracting", "gateway", "status-store"):
            assert await system[name].ended() == 0
        assert [event.get("reason") for event in seen.payloads("heimdex.jobs", job_id)] == ["submitted", "handed_back"]


async def test_a_service_started_with_sighup_ignored_outlives_its_terminal(system: System, api: Api) -> None:
    system.start_all(stages=())
    worker = system.start("extracting", launcher=LAUNCHERS / "ignores_hangup.py")
    await system.ready()
    worker.ask_to_stop(signal.SIGHUP)
    job_id = await api.submit()
    await eventually(lambda: worker.logged("stage_finished", job_id=job_id))
    assert worker.running
    assert await worker.terminate() == 0
