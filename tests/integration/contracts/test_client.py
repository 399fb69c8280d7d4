"""The client's own path for publishes, replies and deliveries, against a real server: in order, and isolated."""

import asyncio

import nats.errors
import pytest

from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream.connection import Broker
from tests.integration.conftest import NewBroker
from tests.support.servers import NatsServer
from tests.support.waiting import eventually


async def echo(broker: Broker) -> None:
    """Answer each request on `echo` with what it sent."""

    def answer(_: bytes, reply: bytes, data: bytes, __: bytes) -> None:
        broker.send(reply.decode(), data)

    await broker.nc.direct_subscribe("echo", answer)
    await broker.nc.flush()


async def test_each_of_many_concurrent_requests_gets_its_own_reply(broker: Broker, new_broker: NewBroker) -> None:
    await echo(await new_broker())
    sent = [b"%d" % number for number in range(500)]
    answers = await asyncio.gather(*(broker.request("echo", payload, timeout=20) for payload in sent))
    assert [answer.data for answer in answers] == sent
    assert broker.nc.pending_requests == 0


async def test_a_request_without_a_subscriber_fails_at_once_and_one_without_a_reply_at_the_time_out(
    broker: Broker,
) -> None:
    with pytest.raises(BrokerUnavailable):
        await broker.request("nobody", b"", timeout=60)  # more than the test may take: the server itself reports it
    await broker.nc.subscribe("silent")
    with pytest.raises(BrokerUnavailable):
        await broker.request("silent", b"", timeout=0.05)
    assert broker.nc.pending_requests == 0


async def test_a_buffered_message_arrives_without_an_urgent_one_after_it(broker: Broker, new_broker: NewBroker) -> None:
    heard: list[bytes] = []
    other = await new_broker()
    await other.nc.direct_subscribe("quiet", lambda *message: heard.append(message[2]))
    await other.nc.flush()
    for number in range(3):
        broker.send("quiet", b"%d" % number)
    await eventually(lambda: heard == [b"0", b"1", b"2"])


async def test_urgent_and_buffered_messages_arrive_in_the_order_in_which_they_were_sent(
    broker: Broker, new_broker: NewBroker
) -> None:
    heard: list[bytes] = []
    other = await new_broker()
    await other.nc.direct_subscribe("quiet", lambda *message: heard.append(message[2]))
    await echo(other)
    for number in range(20):
        broker.send("quiet", b"%d" % number, linger=0.0 if number % 3 else 5.0)
    await broker.request("echo", b"", timeout=20)
    assert heard == [b"%d" % number for number in range(20)]


async def test_later_messages_are_read_after_a_handler_raises(broker: Broker) -> None:
    heard: list[bytes] = []

    def raises(_: bytes, __: bytes, data: bytes, ___: bytes) -> None:
        heard.append(data)
        raise RuntimeError("a defect")

    await broker.nc.direct_subscribe("defect", raises)
    for number in range(3):
        broker.send("defect", b"%d" % number, linger=0)
    await eventually(lambda: heard == [b"0", b"1", b"2"])
    assert await broker.api("INFO")


async def test_subscriptions_and_requests_work_after_a_restart_of_the_server(
    broker: Broker, new_broker: NewBroker, nats: NatsServer
) -> None:
    other = await new_broker()
    await echo(other)
    nats.kill()
    await eventually(lambda: not broker.connected)
    with pytest.raises(BrokerUnavailable):
        broker.send("echo", b"")
    with pytest.raises(BrokerUnavailable):
        await broker.request("echo", b"", timeout=1)
    nats.start()
    await eventually(lambda: broker.connected and other.connected)

    async def answered() -> bool:
        try:
            return (await broker.request("echo", b"again", timeout=5)).data == b"again"
        except BrokerUnavailable:
            return False

    await eventually(answered)


async def test_nothing_is_received_after_unsubscribing(broker: Broker) -> None:
    heard: list[bytes] = []
    number = await broker.nc.direct_subscribe("some", lambda *message: heard.append(message[2]))
    broker.send("some", b"before", linger=0)
    await broker.nc.direct_unsubscribe(number, timeout=5)
    assert heard == [b"before"]
    broker.send("some", b"after", linger=0)
    await broker.nc.flush()
    assert heard == [b"before"]


async def test_a_message_for_which_the_server_would_end_the_connection_is_refused_by_the_client(broker: Broker) -> None:
    with pytest.raises(nats.errors.MaxPayloadError):
        broker.nc.send("large", b"x" * (1024 * 1024 + 1))
    with pytest.raises(nats.errors.MaxPayloadError):
        broker.nc.send("large", b"x" * 1024 * 1024, headers={"A": "b"})
    broker.send("large", b"x" * 1024 * 1024, linger=0)
    await broker.nc.flush()
    assert broker.connected
