"""Fault 13: an unusable message becomes a dead letter, which an operator can list, read, replay and delete.

All with the requests that the stock `nats` CLI makes: `nats stream ls|info|get|view|rmm`, `nats pub`.
"""

import base64
import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from tests.support.api import Api
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer

pytestmark = pytest.mark.allows("unusable")

UNUSABLE = "HEIMDEX_UNUSABLE"
JOB = "11111111-1111-4111-8111-111111111111"


def due(**changes: Any) -> bytes:
    """Return a job's first message as the gateway publishes it."""
    at = datetime.now(UTC).isoformat()
    fields = {
        "event": "due",
        "job_id": JOB,
        "type": "mock_process",
        "step": 0,
        "created_at": at,
        "at": at,
        "stage": "extracting",
        "reason": "submitted",
    }
    return msgspec.json.encode(fields | changes)


SPOILED = {
    "empty": b"",
    "no-json": b"{",
    "not-utf-8": b'{"event": "due", "job_id": "\xff"}',
    "too-deep": b"[" * 100_000,
    "no-job": b'{"hello": "world"}',
    "another-job": due(job_id=str(uuid.UUID(int=777))),
    "a-nul": due(type="mock\x00process"),
    "a-route-without-its-stage": due(route=["analyzing", "indexing"]),
    "a-route-in-a-circle": due(route=["extracting", "analyzing", "extracting"]),
}


async def headers_of(seen: Observer, sequence: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Return a message's headers, and the message as `nats stream get` shows it."""
    message = (await seen.api(f"STREAM.MSG.GET.{UNUSABLE}", {"seq": sequence}))["message"]
    lines = base64.b64decode(message["hdrs"]).decode().split("\r\n")[1:]
    return dict(line.split(": ", 1) for line in lines if ": " in line), message


async def test_each_unusable_message_becomes_a_dead_letter_once_with_its_reason_and_blocks_nothing(
    system: System, api: Api, nats: NatsServer
) -> None:
    system.start_all()
    await system.ready()
    async with Observer(nats.url) as seen:
        sent = {f"heimdex.jobs.extracting.{uuid.UUID(int=number)}": kind for number, kind in enumerate(SPOILED, 1)}
        for subject, kind in sent.items():
            await seen.nc.publish(subject, SPOILED[kind].replace(JOB.encode(), subject[-36:].encode()))
        await api.wait_until(await api.submit(), "completed")
        await eventually(seen.empty, what="the unusable messages are out of the way")
        info = await seen.api(f"STREAM.INFO.{UNUSABLE}", {"subjects_filter": ">"})
        unusable = {subject.replace("heimdex.", "heimdex.unusable.", 1): 1 for subject in sent}
        assert info["state"]["subjects"] == unusable, "each once"
        for sequence in range(info["state"]["first_seq"], info["state"]["last_seq"] + 1):
            headers, message = await headers_of(seen, sequence)
            subject = headers["Heimdex-Subject"]
            assert headers["Heimdex-Reason"]
            assert headers["Nats-Msg-Id"]
            data = base64.b64decode(message.get("data", ""))
            assert data == SPOILED[sent[subject]].replace(JOB.encode(), subject[-36:].encode())
    # The count is in the logs, of each process that found some; each message is logged by one of them.
    entries = [entry for service in system.services for entry in service.logged("message_unusable")]
    assert sorted(entry["subject"] for entry in entries) == sorted(sent)
    assert all(entry["count"] >= 1 and entry["reason"] for entry in entries)


async def test_an_operator_replays_one_dead_letter_and_deletes_another(
    system: System, api: Api, nats: NatsServer
) -> None:
    # A type that the workers of today do not know, and those of tomorrow do.
    system.start_all()
    await system.ready()
    async with Observer(nats.url) as seen:
        for _ in range(2):
            await seen.nc.publish(f"heimdex.jobs.extracting.{JOB}", due(type="mock_process", stage="elsewhere"))
        await eventually(lambda: _holds(seen, 2), what="both are set aside")
        await eventually(seen.empty)
        first = (await seen.api(f"STREAM.INFO.{UNUSABLE}"))["state"]["first_seq"]
        headers, message = await headers_of(seen, first)
        assert "elsewhere" in headers["Heimdex-Reason"]
        assert (await seen.api(f"STREAM.MSG.DELETE.{UNUSABLE}", {"seq": first + 1}))["success"]
        assert await _holds(seen, 1)
        # Corrected by hand, and published again on its subject.
        mended = base64.b64decode(message["data"]).replace(b"elsewhere", b"extracting")
        await seen.nc.request(headers["Heimdex-Subject"], mended, timeout=10)
        await eventually(lambda: _found(api), what="the job is known")
        await api.wait_until(JOB, "completed")
        assert (await seen.api(f"STREAM.PURGE.{UNUSABLE}"))["success"]
        assert await _holds(seen, 0)
        await eventually(seen.empty)


async def test_unusable_events_of_the_other_streams_become_dead_letters_too(
    system: System, api: Api, nats: NatsServer
) -> None:
    system.start_all()
    await system.ready()
    async with Observer(nats.url) as seen:
        for subject in (f"heimdex.attempts.extracting.{JOB}", f"heimdex.progress.extracting.{JOB}"):
            await seen.nc.publish(subject, b"nonsense")
        await eventually(lambda: _holds(seen, 2), what="both are set aside")
        await api.wait_until(await api.submit(), "completed")
        assert await seen.count("HEIMDEX_ATTEMPTS") == 0


async def _holds(seen: Observer, count: int) -> bool:
    return await seen.count(UNUSABLE) == count


async def _found(api: Api) -> bool:
    return (await api.http.get(f"/jobs/{JOB}")).status_code == 200
