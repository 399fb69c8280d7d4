"""A malformed message on any subject stops nothing: it becomes a dead letter, is logged once, and leaves its stream."""

import asyncio
import json
import uuid
from urllib.parse import urlsplit

import pytest

from tests.support.api import Api
from tests.support.pipelines.scripted import STAGES, Script
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer

pytestmark = pytest.mark.allows("unusable")

TIME = "2025-10-28T12:00:00.000001Z"
PAYLOADS = {
    "empty": b"",
    "cut off": b"{",
    "null": b"null",
    "number": b"17",
    "array": b"[]",
    "object": b"{}",
    "binary": bytes(range(256)),
    "not UTF-8": b'{"event":"due","type":"\xff"}',
    "wrong types": json.dumps({"event": "due", "job_id": 7, "type": [], "step": "one", "at": None}).encode(),
    "deeply nested": b"[" * 100_000,
    "a megabyte": b"x" * (1024 * 1024 - 1024),
}


def deep(job_id: str, depth: int) -> bytes:
    """Return a completed event whose result has the deepest nesting that can be decoded."""
    result = '{"a":' * depth + "1" + "}" * depth
    core = f'"event":"completed","job_id":"{job_id}","type":"mock_process","step":3,"stage":"indexing"'
    return f'{{{core},"created_at":"{TIME}","at":"{TIME}","result":{result}}}'.encode()


def out_of_range(job_id: str) -> bytes:
    """Return a message that can be decoded, and that Postgres refuses."""
    late = "9999-12-31T23:59:59.999999-12:00"
    core = f'"event":"completed","job_id":"{job_id}","type":"mock_process","step":3,"stage":"indexing"'
    return f'{{{core},"created_at":"{late}","at":"{late}","result":{{}}}}'.encode()


async def set_aside(system: System, seen: Observer, number: int) -> None:
    """Wait until HEIMDEX_UNUSABLE has this many messages, and assert that each was logged once."""

    async def counted() -> bool:
        return await seen.count("HEIMDEX_UNUSABLE") >= number

    await eventually(counted, what=f"{number} messages are set aside")
    await eventually(seen.empty, what="the stream HEIMDEX_JOBS is empty")
    await eventually(lambda: seen.empty("HEIMDEX_ATTEMPTS"))
    entries = [entry for service in system.services for entry in service.logged("message_unusable")]
    assert await seen.count("HEIMDEX_UNUSABLE") == number
    assert len({(entry["stream"], entry["sequence"]) for entry in entries}) == len(entries) == number
    assert all(entry["reason"] for entry in entries)


async def still_works(system: System, api: Api) -> None:
    """Assert that every service is alive and that a job completes."""
    job_id = await api.submit()
    await api.wait_until(job_id, "completed")
    assert all(service.running for service in system.services)


async def test_malformed_messages_on_every_subject_become_dead_letters_once_and_stop_nothing(
    system: System, api: Api, nats: NatsServer
) -> None:
    system.start_all()
    await system.ready()
    channels = ["jobs.extracting", "jobs.completed", "jobs.failed", "jobs.canceled", "jobs.painting"]
    channels += ["attempts.analyzing", "attempts.painting", "progress.indexing"]
    published = 0
    async with Observer(nats.url, "nothing") as seen:
        for channel in channels:
            for name, payload in PAYLOADS.items():
                if channel != "jobs.extracting" and name in {"deeply nested", "a megabyte"}:
                    continue
                await seen.nc.publish(f"heimdex.{channel}.{uuid.uuid4()}", payload)
                published += 1
            await seen.nc.publish(f"heimdex.{channel}.not-a-uuid", b"{}")
            published += 1
        await seen.nc.flush()
        await set_aside(system, seen, published)
        await still_works(system, api)


async def test_malformed_messages_on_a_running_jobs_subjects_do_not_delay_it(
    system: System, api: Api, nats: NatsServer, script: Script
) -> None:
    system.env |= script.env
    script.write("preparing", "gate")
    system.start_all(stages=STAGES)
    await system.ready()
    async with Observer(nats.url, "nothing") as seen:
        job_id = await api.submit(type="scripted")
        await eventually(lambda: script.runs("preparing", job_id))
        channels = [f"jobs.{token}" for token in (*STAGES, "completed", "failed", "canceled")]
        channels += ["attempts.preparing", "progress.preparing"]
        published = 0
        for channel in channels:
            for name in ("empty", "null", "wrong types"):
                await seen.nc.publish(f"heimdex.{channel}.{job_id}", PAYLOADS[name])
                published += 1
        await seen.nc.flush()

        async def counted() -> bool:
            # Of the three on the progress subject, only the newest may be left when it is looked at.
            return await seen.count("HEIMDEX_UNUSABLE") >= published - 2

        await eventually(counted)
        assert (await api.http.get(f"/jobs/{job_id}")).status_code == 200
        script.open_gate()
        job = await api.wait_until(job_id, "completed")
        assert job["result"]["stages_completed"] == list(STAGES)
        assert [run[0] for run in script.runs(job_id=job_id)] == list(STAGES)
        await eventually(seen.empty, what="the stream HEIMDEX_JOBS is empty")
    assert all(service.running for service in system.services)


async def test_messages_that_can_be_decoded_and_not_recorded_become_dead_letters(
    system: System, api: Api, nats: NatsServer
) -> None:
    system.start_all()
    await system.ready()
    async with Observer(nats.url, "nothing") as seen:
        job_id = str(uuid.uuid4())
        await seen.nc.publish(f"heimdex.jobs.completed.{job_id}", out_of_range(job_id))
        await set_aside(system, seen, 1)
        await still_works(system, api)


async def test_results_nested_to_the_decoders_limit_do_not_end_the_store(
    system: System, api: Api, nats: NatsServer
) -> None:
    system.start_all(without=("status-store",))
    await system.ready()
    async with Observer(nats.url, "nothing") as seen:
        for depth in [*range(970, 1030), 2_000, 10_000]:
            job_id = str(uuid.uuid4())
            await seen.nc.publish(f"heimdex.jobs.completed.{job_id}", deep(job_id, depth))
        await seen.nc.flush()
        await system.start("status-store").wait_log("ready")
        await eventually(seen.empty, what="the stream HEIMDEX_JOBS is empty")
        await still_works(system, api)


RAW = {
    "a subject that is not UTF-8": b"PUB heimdex.jobs.extracting.\xff\xfe 2\r\n{}\r\n",
    "a progress subject that is not UTF-8": b"PUB heimdex.progress.extracting.\xff 2\r\n{}\r\n",
    "a very long subject": b"PUB heimdex.jobs.extracting." + b"x" * 3000 + b" 2\r\n{}\r\n",
    "headers without a version line": b"HPUB heimdex.jobs.extracting.a 11 13\r\ngarbage\r\n\r\n{}\r\n",
    "headers that are not UTF-8": b"HPUB heimdex.jobs.extracting.b 20 22\r\nNATS/1.0\r\n\xff\xfe: \xff\r\n\r\n{}\r\n",
    "headers without a colon": b"HPUB heimdex.jobs.extracting.c 19 21\r\nNATS/1.0\r\ncolon\r\n\r\n{}\r\n",
    "an empty header name": b"HPUB heimdex.jobs.extracting.d 17 19\r\nNATS/1.0\r\n: x\r\n\r\n{}\r\n",
}


async def publish_raw(nats: NatsServer, line: bytes) -> None:
    """Publish without the checks of a client library; returns once the server has accepted or refused the message."""
    place = urlsplit(nats.url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    writer.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\n' + line + b"PING\r\n")
    await writer.drain()
    while True:
        answer = await asyncio.wait_for(reader.readline(), 10)
        if answer.startswith((b"PONG", b"-ERR")) or not answer:
            break
    writer.close()


async def test_messages_of_an_odd_shape_do_not_stop_any_service(system: System, api: Api, nats: NatsServer) -> None:
    system.start_all()
    await system.ready()
    for kind, line in RAW.items():
        await publish_raw(nats, line)
        job_id = await api.submit()
        try:
            await api.wait_until(job_id, "completed", timeout=20)
        except AssertionError as error:
            raise AssertionError(f"no job completes after {kind}") from error
    assert all(service.running for service in system.services)
    assert not [service for service in system.services if service.logged("nats_disconnected")]
    async with Observer(nats.url, "nothing") as seen:
        await eventually(seen.empty, what="the stream HEIMDEX_JOBS is empty")
