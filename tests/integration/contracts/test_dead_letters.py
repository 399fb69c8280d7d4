"""Unusable messages are set aside once, with their reason, and taken out of the way."""

from typing import Any, cast

import pytest

from heimdex_contracts import subjects
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.dead_letters import DeadLetters
from tests.integration.conftest import count, take
from tests.support.histories import new_id
from tests.support.recording_logger import Journal
from tests.support.waiting import eventually

pytestmark = pytest.mark.allows("unusable")


@pytest.fixture
def aside(ready: Broker, journal: Journal) -> DeadLetters:
    return DeadLetters(ready, cast("Any", journal))


async def test_an_unusable_message_is_kept_with_its_reason_and_logged_once_for_all_its_consumers(
    ready: Broker, aside: DeadLetters, journal: Journal
) -> None:
    subject = subjects.job_subject("extracting", new_id())
    await ready.publish(subject, b"rubbish", {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
    for durable in ("extracting", "status-store"):
        (msg,) = await take(ready, durable)
        await aside.store(msg, "it is\nrubbish")

    async def gone() -> bool:
        return await count(ready) == 0

    await eventually(gone)
    assert await count(ready, subjects.UNUSABLE) == 1
    kept = await ready.last_message(subjects.UNUSABLE, subjects.unusable_subject(subject))
    assert kept is not None
    assert kept.data == b"rubbish"
    assert kept.headers["Heimdex-Reason"] == "it is rubbish"
    assert kept.headers["Heimdex-Subject"] == subject
    assert kept.headers["Nats-Msg-Id"]
    assert kept.headers["traceparent"].split("-")[1] == "4bf92f3577b34da6a3ce929d0e0e4736"
    (entry,) = journal.of("message_unusable")
    assert (entry["subject"], entry["reason"], entry["bytes"]) == (subject, "it is\nrubbish", 7)


async def test_a_message_of_the_largest_size_is_kept_cut_off_and_says_so(ready: Broker, aside: DeadLetters) -> None:
    subject = subjects.job_subject("extracting", new_id())
    await ready.publish(subject, b"x" * (1024 * 1024 - 100), {})
    (msg,) = await take(ready, "extracting")
    await aside.store(msg, "too long" * 1000)
    kept = await ready.last_message(subjects.UNUSABLE, subjects.unusable_subject(subject))
    assert kept is not None
    assert "Heimdex-Truncated" in kept.headers


@pytest.mark.parametrize("reason", ["", "naïve — ☃", "a: b\r\nEvil: header", "\x00\x7f"])
async def test_any_reason_can_be_given(ready: Broker, aside: DeadLetters, reason: str) -> None:
    await ready.publish(subjects.job_subject("extracting", new_id()), b"rubbish", {})
    (msg,) = await take(ready, "extracting")
    await aside.store(msg, reason)
    assert await count(ready, subjects.UNUSABLE) == 1
