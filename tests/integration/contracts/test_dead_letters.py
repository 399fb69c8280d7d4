"""Unusable messages become dead letters once, with their reason, and leave their stream."""

from typing import Any, cast

import pytest

from heimdex_contracts import subjects
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.dead_letters import DeadLetters
from heimdex_contracts.runtime.jetstream.delivery import Holder
from tests.integration.conftest import NewBroker, consumer, count, holder_on, take
from tests.support.histories import new_id
from tests.support.recording_logger import RecordingLogger
from tests.support.servers import NatsServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.allows("unusable")


@pytest.fixture
def aside(ready: Broker, journal: RecordingLogger) -> DeadLetters:
    return DeadLetters(ready, cast("Any", journal))


async def test_a_dead_letter_is_stored_with_its_reason_and_logged_once_for_all_its_consumers(
    ready: Broker, holder: Holder, aside: DeadLetters, journal: RecordingLogger
) -> None:
    subject = subjects.job_subject("extracting", new_id())
    await ready.publish(subject, b"rubbish", {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
    for durable in ("extracting", "status-store"):
        (msg,) = await take(holder, durable)
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


async def test_a_dead_letter_of_the_largest_size_is_truncated_and_marked(
    ready: Broker, holder: Holder, aside: DeadLetters
) -> None:
    subject = subjects.job_subject("extracting", new_id())
    await ready.publish(subject, b"x" * (1024 * 1024 - 100), {})
    (msg,) = await take(holder, "extracting")
    await aside.store(msg, "too long" * 1000)
    kept = await ready.last_message(subjects.UNUSABLE, subjects.unusable_subject(subject))
    assert kept is not None
    assert "Heimdex-Truncated" in kept.headers


@pytest.mark.parametrize("reason", ["", "naïve — ☃", "a: b\r\nEvil: header", "\x00\x7f"])
async def test_any_text_can_be_the_reason(ready: Broker, holder: Holder, aside: DeadLetters, reason: str) -> None:
    await ready.publish(subjects.job_subject("extracting", new_id()), b"rubbish", {})
    (msg,) = await take(holder, "extracting")
    await aside.store(msg, reason)
    assert await count(ready, subjects.UNUSABLE) == 1


@pytest.mark.allows("topology")
@pytest.mark.parametrize("settle", ["ack", "nak", "term"])
async def test_a_delivery_of_a_lost_stream_settles_nothing_in_the_new_one(
    holder: Holder, ready: Broker, new_broker: NewBroker, nats: NatsServer, journal: RecordingLogger, settle: str
) -> None:
    """Two stores: one holds a delivery from before the loss, the other the new message with the same sequence."""
    await ready.publish(subjects.job_subject("extracting", new_id()), b"rubbish", {})
    (old,) = await take(holder, "status-store")
    nats.kill()
    await eventually(lambda: not ready.connected)
    nats.wipe()
    nats.start()
    await eventually(lambda: ready.connected and holder.topology.known.is_set())
    await ready.publish(subjects.job_subject("extracting", new_id()), b"{}", {})
    (new,) = await take(await holder_on(await new_broker(), journal), "status-store")
    assert new.metadata.sequence == old.metadata.sequence
    if settle == "term":
        await DeadLetters(ready, cast("Any", journal)).store(old, "it is rubbish")
    else:
        getattr(old, settle)()
    await ready.nc.flush()
    assert (await consumer(ready, "status-store"))["num_ack_pending"] == 1, "the other store holds it"
    new.ack()

    async def settled() -> bool:
        return bool((await consumer(ready, "status-store"))["num_ack_pending"] == 0)

    await eventually(settled)
