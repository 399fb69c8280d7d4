"""Callbacks under faults: each terminal event is called back at least once, with one id, and no attempt is lost."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Api
from tests.support.receiver import Receiver
from tests.support.rows import events, fetch
from tests.support.services import LAUNCHERS, System
from tests.support.waiting import eventually
from tests.support.watching import Observer
from tests.system.callbacks.histories import callbacks_of, wait_for_callback

SOON = LAUNCHERS / "gateway_that_calls_soon.py"
CALLBACKS = "HEIMDEX_CALLBACKS"


async def kinds(database_url: str, job_id: str) -> list[str]:
    return [event["kind"] for event in await events(database_url, job_id)]


async def test_an_attempt_of_a_killed_gateway_is_repeated_by_another_with_the_same_id(
    calling: System, api: Api, receiver: Receiver
) -> None:
    over = threading.Event()
    receiver.answers = [lambda _: over.wait(60) and 500, 204]
    calling.start_all()
    await calling.ready()
    try:
        job_id = await api.submit(callback_url=receiver.url)
        await eventually(lambda: receiver.calls, what="the receiver is called")
        calling["gateway"].kill()
        calling.start("gateway")
        await calling.ready()
        (entry,) = await wait_for_callback(api, job_id)
        assert entry["id"] == "3.1", "the try that was lost is made again, and is no further one"
    finally:
        over.set()
    first, second = receiver.calls
    assert first.id == second.id
    assert first.body == second.body
    assert second.job["id"] == job_id


async def test_an_attempt_whose_success_a_killed_gateway_did_not_publish_is_repeated_with_the_same_id(
    calling: System, api: Api, receiver: Receiver, died: Path
) -> None:
    calling.start_all(without=("gateway",))
    first = calling.start("gateway", launcher=LAUNCHERS / "gateway_dies_before_telling.py")
    await calling.ready()
    job_id = await api.submit(callback_url=receiver.url)
    assert await first.ended() == -9
    calling.start("gateway")
    await calling.ready()
    await wait_for_callback(api, job_id)
    assert [call.id for call in receiver.calls] == [f"{job_id}-3"] * 2


@pytest.mark.parametrize("point", [pytest.param("before", marks=pytest.mark.full), "after"])
async def test_a_callback_is_made_although_the_store_was_killed_before_it_acknowledged_the_terminal_event(
    calling: System, api: Api, receiver: Receiver, nats: Any, database_url: str, died: Path, point: str
) -> None:
    calling.start_all(without=("status-store",))
    first = calling.start("status-store", launcher=LAUNCHERS / f"store_dies_{point}_callback.py")
    await calling.ready()
    async with Observer(nats.url) as seen:
        job_id = await api.submit(callback_url=receiver.url)
        assert await first.ended() == -9
        assert [row["status"] for row in await fetch(database_url, "SELECT status FROM jobs")] == ["completed"]
        assert seen.subjects("heimdex.callbacks", job_id)[:1] == ([] if point == "before" else ["due"])
        calling.start("status-store")
        # The end comes again after the store's ack wait of 30 s.
        await wait_for_callback(api, job_id, timeout=60)
        await eventually(seen.empty, 60)
        await eventually(lambda: seen.empty(CALLBACKS))
    assert [call.id for call in receiver.calls] == [f"{job_id}-3"]
    assert await kinds(database_url, job_id) == [
        "submitted",
        "handed_over",
        "handed_over",
        "completed",
        "callback_delivered",
    ]


async def test_a_stopping_gateway_hands_back_an_attempt_that_it_cannot_finish(
    calling: System, api: Api, receiver: Receiver
) -> None:
    over = threading.Event()
    receiver.answers = [lambda _: over.wait(60) and 500, 204]
    # So long that only what is handed back comes again within this test's patience.
    calling.env |= {"HEIMDEX_ACK_WAIT_SECONDS": "300", "HEIMDEX_SHUTDOWN_GRACE_SECONDS": "2"}
    calling.start_all()
    await calling.ready()
    try:
        job_id = await api.submit(callback_url=receiver.url)
        await eventually(lambda: receiver.calls, what="the receiver is called")
        first = calling["gateway"]
        assert await first.terminate() == 0
        assert first.logged("callback_handed_back", job_id=job_id)
        calling.start("gateway")
        await calling.ready()
        (entry,) = await wait_for_callback(api, job_id)
        assert entry["id"] == "3.1"
    finally:
        over.set()


async def test_two_gateways_share_the_callbacks_and_make_each_once(
    calling: System, api: Api, receiver: Receiver, nats: Any
) -> None:
    calling.start_all()
    other = calling.start("gateway", port=calling.port + 1 if calling.port < 65535 else calling.port - 1)
    await calling.ready()
    jobs = [{"type": "mock_process", "callback_url": receiver.url}] * 300
    response = await api.http.post("/jobs/batch", json={"jobs": jobs})
    assert response.status_code == 202, response.text
    async with Observer(nats.url) as seen:
        await eventually(lambda: len(receiver.calls) >= 300, what=lambda: f"300 calls, not {len(receiver.calls)}")
        await eventually(lambda: seen.empty(CALLBACKS))
    assert sorted(call.id for call in receiver.calls) == sorted(f"{job_id}-3" for job_id in response.json()["job_ids"])
    shares = [len(service.logged("callback_delivered")) for service in (calling.services[0], other)]
    assert sum(shares) == 300
    assert all(shares), shares


@pytest.mark.allows("nats_killed")
async def test_callbacks_survive_a_restart_of_nats_without_a_gateway(
    calling: System, api: Api, receiver: Receiver, nats: Any
) -> None:
    calling.start_all()
    await calling.ready()
    receiver.answers = [500, 204]
    tried = await api.submit(callback_url=receiver.url)
    await wait_for_callback(api, tried, "callback_failed")
    await calling["gateway"].terminate()
    async with Observer(nats.url) as seen:
        await asyncio.to_thread(nats.kill)
        await asyncio.to_thread(nats.start)
        await eventually(lambda: seen.nc.is_connected)
        assert await seen.count(CALLBACKS) == 1
    calling.start("gateway")
    await calling.ready()
    assert [entry["id"] for entry in await wait_for_callback(api, tried)] == ["3.1", "3.2"]
    assert [call.id for call in receiver.calls] == [f"{tried}-3"] * 2


@pytest.mark.allows("nats_killed")
async def test_a_terminal_event_recorded_as_nats_goes_down_is_called_back_after_the_outage(
    calling: System, api: Api, receiver: Receiver, nats: Any
) -> None:
    calling.env["HEIMDEX_MOCK_TIME_SCALE"] = "0.05"
    calling.start_all()
    await calling.ready()
    jobs = [{"type": "mock_process", "callback_url": receiver.url}] * 40
    response = await api.http.post("/jobs/batch", json={"jobs": jobs})
    await eventually(lambda: receiver.calls, what="the first are called")
    await asyncio.to_thread(nats.kill)
    await asyncio.to_thread(nats.start)
    expected = {f"{job_id}-3" for job_id in response.json()["job_ids"]}
    # What was held when NATS went comes again after the store's ack wait of 30 s.
    await eventually(lambda: {call.id for call in receiver.calls} == expected, 80)
    for job_id in response.json()["job_ids"]:
        await wait_for_callback(api, job_id, timeout=60)


@pytest.mark.allows("nats_killed", "callbacks_restored")
async def test_due_callbacks_are_restored_after_nats_lost_its_disk(
    calling: System, api: Api, receiver: Receiver, nats: Any, database_url: str
) -> None:
    calling.start_all()
    await calling.ready()
    done = await api.submit(callback_url=receiver.url)
    await wait_for_callback(api, done)
    receiver.answers = [500]
    completed = await api.submit(callback_url=receiver.url)
    failed = await api.submit(callback_url=receiver.url, fail_at_stage="analyzing")
    for job_id in (completed, failed):
        await wait_for_callback(api, job_id, "callback_failed")
    receiver.answers = [204]
    await asyncio.to_thread(nats.kill)
    nats.wipe()
    await asyncio.to_thread(nats.start)
    for job_id in (completed, failed):
        last = (await wait_for_callback(api, job_id))[-1]
        assert last["id"].endswith(".2"), "its tries are counted on"
    assert len(receiver.of(done)) == 1
    rows = await fetch(database_url, "SELECT id::text FROM jobs WHERE status = 'completed' AND message IS NULL")
    assert rows == []


@pytest.mark.allows("topology")
async def test_a_stream_that_accepts_no_callbacks_delays_no_job_and_loses_no_callback(
    calling: System, api: Api, receiver: Receiver, nats: Any
) -> None:
    calling.start_all()
    await calling.ready()
    async with Observer(nats.url) as seen:
        # Nobody can undo a seal: the stream takes nothing until somebody removes it.
        config = (await seen.api(f"STREAM.INFO.{CALLBACKS}"))["config"]
        assert "error" not in await seen.api(f"STREAM.UPDATE.{CALLBACKS}", {**config, "sealed": True})
        owed = await api.submit(callback_url=receiver.url)
        for _ in range(20):
            await api.wait_until(await api.submit(), "completed")
        assert await callbacks_of(api, owed) == []
        assert (await api.http.get("/readyz")).json()["nats"]["detail"].startswith(CALLBACKS)
        await seen.api(f"STREAM.DELETE.{CALLBACKS}")
        await wait_for_callback(api, owed)
        await eventually(seen.empty)
    assert [call.id for call in receiver.calls] == [f"{owed}-3"]


@pytest.mark.allows("unusable")
async def test_malformed_callback_messages_become_dead_letters_and_delay_no_callback(
    calling: System, api: Api, receiver: Receiver, nats: Any
) -> None:
    calling.start_all()
    await calling.ready()
    async with Observer(nats.url) as seen:
        for token in ("due", "failed", "delivered", "given-up"):
            for payload in (b"", b"{", b'{"event": "due"}', b"[" * 100_000):
                await seen.nc.publish(f"heimdex.callbacks.{token}.some-id", payload)
        job_id = await api.submit(callback_url=receiver.url)
        await wait_for_callback(api, job_id)
        await eventually(lambda: seen.empty(CALLBACKS), what="nothing is left")
        assert await seen.count("HEIMDEX_UNUSABLE") == 16
