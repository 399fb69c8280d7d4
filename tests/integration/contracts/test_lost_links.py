"""The client on connections that break in unusual ways: it reconnects, and keeps nothing of the old connection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import pytest_asyncio
from nats.aio.msg import Msg

from heimdex_contracts import subjects
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.delivery import Delivery
from heimdex_contracts.runtime.jetstream.pull_consumer import PullConsumer
from heimdex_contracts.runtime.settings import Settings
from tests.integration.conftest import consumer, holder_on
from tests.support.links import Link
from tests.support.recording_logger import RecordingLogger
from tests.support.servers import NatsServer
from tests.support.waiting import eventually


def port(server: NatsServer) -> int:
    return int(server.url.rpartition(":")[2])


@pytest_asyncio.fixture
async def link(nats: NatsServer) -> AsyncIterator[Link]:
    async with Link(port(nats)) as link:
        yield link


@pytest_asyncio.fixture
async def linked(link: Link, journal: RecordingLogger) -> AsyncIterator[Broker]:
    """A broker whose only way to the server is the link."""
    broker = Broker(Settings(nats_url=link.url), "linked", cast("Any", journal))
    await broker.connect()
    yield broker
    await broker.close()


async def answers(broker: Broker) -> bool:
    try:
        await broker.api("INFO", timeout=5)
    except BrokerUnavailable:
        return False
    return True


async def test_a_canceled_flush_does_not_stop_the_reader(linked: Broker) -> None:
    for _ in range(20):
        flushing = asyncio.create_task(linked.nc.flush())
        await asyncio.sleep(0)
        flushing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await flushing
    await eventually(lambda: answers(linked))
    # The pings detect a connection that receives nothing, and the client reconnects.
    assert linked.nc.stats["reconnects"] == 0


async def test_a_server_that_resets_the_connection_during_the_handshake_is_tried_again(
    link: Link, linked: Broker
) -> None:
    link.resets = 3
    link.cut()
    await eventually(lambda: not linked.connected)
    await eventually(lambda: answers(linked))
    assert link.resets == 0


async def test_a_connection_that_discards_what_is_written_is_replaced_by_one_to_another_server(
    link: Link, nats: NatsServer, journal: RecordingLogger
) -> None:
    broker = Broker(Settings(nats_url=f"{link.url},{nats.url}"), "both", cast("Any", journal))
    # Only the first connection must be the link; nats-py shuffles its servers.
    while not link.accepted:
        await broker.connect()
        if not link.accepted:
            await broker.nc.close()
            broker = Broker(Settings(nats_url=f"{link.url},{nats.url}"), "both", cast("Any", journal))
    link.swallow()
    for _ in range(16):  # more than the kernel takes for us
        broker.send("nobody", b"x" * 1_000_000, linger=0)
    await eventually(lambda: not broker.connected or broker.nc.connected_url.port == port(nats))
    await eventually(lambda: answers(broker))
    await broker.close()


async def test_data_not_written_when_the_connection_broke_is_not_written_to_the_next_server(
    link: Link, linked: Broker, broker: Broker
) -> None:
    heard: list[bytes] = []
    await broker.nc.direct_subscribe("settled", lambda *message: heard.append(message[2]))
    await broker.nc.flush()
    linked.send("settled", b"before", linger=60)
    link.cut()
    await eventually(lambda: not linked.connected)
    await eventually(lambda: answers(linked))
    linked.send("settled", b"after", linger=0)
    await eventually(lambda: heard[-1:] == [b"after"])
    assert heard == [b"after"]


async def test_a_puller_requests_no_more_than_its_capacity_after_any_number_of_reconnections(
    link: Link, linked: Broker, ready: Broker, journal: RecordingLogger
) -> None:
    held: list[Delivery] = []
    puller = PullConsumer(
        await holder_on(linked, journal), subjects.JOBS, "extracting", 10, 20.0, held.append, cast("Any", journal)
    )

    async def reset() -> None:
        puller.reset()

    linked.on_reconnect.append(reset)
    lost: list[None] = []
    linked.on_disconnect.append(lambda: lost.append(None))
    await puller.start()
    for cut in range(1, 4):
        link.cut()
        # Not "is it connected?": it may be again before we look.
        await eventually(lambda cut=cut: len(lost) >= cut)
        await eventually(lambda: answers(linked))
    for job in range(100):
        await ready.publish(f"heimdex.jobs.extracting.{job}", b"{}", {}, timeout=10)
    await eventually(lambda: len(held) >= 10)
    await linked.flush(10)

    async def are_delivered() -> bool:
        return int((await consumer(ready, "extracting"))["num_ack_pending"]) == 10

    await eventually(are_delivered)
    assert len(held) == 10
    await puller.stop()


@pytest.mark.allows("defect")
async def test_work_that_fails_after_a_reconnection_is_repeated(
    link: Link, linked: Broker, journal: RecordingLogger
) -> None:
    attempts: list[int] = []

    async def work() -> None:
        attempts.append(len(attempts))
        if len(attempts) == 1:
            raise ZeroDivisionError

    linked.on_reconnect.append(work)
    link.cut()
    await eventually(lambda: len(attempts) == 2)
    assert journal.of("reconnection_broken")


async def test_a_malformed_header_block_does_not_stop_the_reader(linked: Broker, nats: NatsServer) -> None:
    heard: list[bytes] = []

    async def hear(msg: Msg) -> None:
        heard.append(msg.data)

    await linked.nc.subscribe("odd", cb=hear)
    await linked.nc.flush()
    reader, writer = await asyncio.open_connection("127.0.0.1", port(nats))
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\nHPUB odd 4 6\r\nabcdef\r\nPUB odd 4\r\nnext\r\nPING\r\n')
    await reader.readline()
    await eventually(lambda: heard == [b"ef", b"next"])
    assert await answers(linked)
    writer.close()
