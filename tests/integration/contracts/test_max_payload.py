"""A message over the server's max_payload is refused with a sentence, until the server accepts it."""

import asyncio
from typing import Any, cast

import pytest

from heimdex_contracts import subjects
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream.connection import TOO_LARGE, Broker, PubAck
from heimdex_contracts.runtime.jetstream.dead_letters import DeadLetters
from heimdex_contracts.runtime.jetstream.delivery import Holder
from heimdex_contracts.runtime.jetstream.publisher import Publisher, Refused
from tests.integration.conftest import NewBroker, count, take
from tests.support.histories import due
from tests.support.recording_logger import RecordingLogger
from tests.support.servers import NatsServer, reload_nats
from tests.support.waiting import eventually

SUBJECT = "heimdex.jobs.extracting.any"


async def publish(broker: Broker, size: int) -> PubAck | None:
    """Publish a message of this size. Returns None if the server ended the connection, or the client reconnects."""
    try:
        return await broker.publish(SUBJECT, b"x" * size, {})
    except BrokerUnavailable:
        return None


async def refused(broker: Broker, size: int) -> bool:
    ack = await publish(broker, size)
    return ack is not None and ack.error is not None


async def stored(broker: Broker, size: int) -> bool:
    ack = await publish(broker, size)
    return ack is not None and ack.error is None


async def test_a_large_message_is_refused_with_both_sizes_and_the_connection_stays(ready: Broker) -> None:
    ack = await publish(ready, 1024 * 1024 + 1)
    assert ack is not None
    assert ack.error is not None
    assert ack.error.err_code == TOO_LARGE
    assert ack.error.description == (
        "a message of 1,048,577 bytes is over the max_payload of the NATS server (1,048,576 bytes): "
        "raise max_payload in the configuration of each NATS server"
    )
    assert ready.nc.stats["reconnects"] == 0


async def test_a_limit_that_changes_while_connected_is_noticed_if_lower_or_higher(
    ready: Broker, nats: NatsServer
) -> None:
    reload_nats(nats, "max_payload: 10000")
    await eventually(lambda: refused(ready, 20_000))
    # The server did not report the new limit, but ended the connection at the first message.
    assert ready.nc.stats["reconnects"] == 1
    assert await stored(ready, 9_000)
    reload_nats(nats, "max_payload: 30000")
    await eventually(lambda: stored(ready, 20_000))
    assert ready.nc.stats["reconnects"] == 1
    assert await refused(ready, 40_000)


async def test_many_concurrent_refusals_query_the_server_once(ready: Broker, nats: NatsServer) -> None:
    async def connections() -> int:
        # Each connection of a server has the next number.
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(nats.url.rpartition(":")[2]))
            line = await reader.readline()
            writer.close()
        return int(line.partition(b'"client_id":')[2].partition(b",")[0])

    before = await connections()
    acks = await asyncio.gather(*(publish(ready, 2 * 1024 * 1024) for _ in range(50)))
    assert all(ack is not None and ack.error is not None for ack in acks)
    assert await connections() - before <= 4, "ours, and as many looks as a slow machine has time for"


async def test_nothing_of_a_batch_is_sent_if_one_of_its_messages_is_too_large(
    ready: Broker, new_broker: NewBroker, journal: RecordingLogger
) -> None:
    seen: list[bytes] = []
    other = await new_broker()
    await other.nc.direct_subscribe("heimdex.jobs.>", lambda *message: seen.append(message[0]))
    await other.flush(10)
    jobs = [due(), due(), due(callback_url="https://example.com/" + "x" * 1024 * 1024), due()]
    with pytest.raises(Refused, match="max_payload"):
        await Publisher(ready, cast("Any", journal)).publish_new(jobs, asyncio.get_running_loop().time() + 10)
    await ready.flush(10)
    await other.flush(10)
    assert not seen


async def test_a_refused_message_that_is_sent_without_waiting_is_logged_once(
    ready: Broker, journal: RecordingLogger
) -> None:
    for _ in range(3):
        with pytest.raises(BrokerUnavailable, match="max_payload"):
            ready.send("heimdex.progress.extracting.any", b"x" * 2 * 1024 * 1024)
    (entry,) = journal.of("message_too_large")
    assert "2,097,152 bytes" in entry["message"]


@pytest.mark.allows("unusable")
async def test_a_dead_letter_is_truncated_to_the_servers_limit(
    ready: Broker, holder: Holder, nats: NatsServer, journal: RecordingLogger
) -> None:
    aside = DeadLetters(ready, cast("Any", journal))
    await ready.publish(SUBJECT, b"x" * 50_000, {})
    (msg,) = await take(holder, "extracting")
    reload_nats(nats, "max_payload: 4096")
    await eventually(lambda: refused(ready, 5000))
    await aside.store(msg, "too long")
    kept = await ready.last_message(subjects.UNUSABLE, "heimdex.unusable.>")
    assert kept is not None
    assert kept.headers["Heimdex-Truncated"] == f"{len(kept.data)} of 50000 bytes"
    assert len(kept.data) > 3000
    assert not journal.of("unusable_refused")


@pytest.mark.allows("unusable")
async def test_a_message_with_the_longest_possible_subject_becomes_a_dead_letter(
    ready: Broker, holder: Holder, journal: RecordingLogger
) -> None:
    aside = DeadLetters(ready, cast("Any", journal))
    # Almost as long as the server takes it from whoever asks for no answer.
    subject = "heimdex.jobs.extracting.".ljust(4060, "x")
    ready.send(subject, b"rubbish")
    (msg,) = await take(holder, "extracting")
    await aside.store(msg, "nobody's")
    kept = await ready.last_message(subjects.UNUSABLE, "heimdex.unusable.>")
    assert kept is not None
    assert kept.headers["Heimdex-Subject"] == subject
    assert await count(ready, subjects.UNUSABLE) == 1
    assert ready.nc.stats["reconnects"] == 0
