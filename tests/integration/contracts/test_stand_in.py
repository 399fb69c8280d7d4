"""Leases renewed through another connection than the one that received the deliveries."""

from collections.abc import AsyncIterator

import pytest_asyncio

from heimdex_contracts import subjects
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.delivery import Delivery, Holder, StandIn
from tests.integration.conftest import NewBroker, stream, take
from tests.support.servers import NatsServer
from tests.support.waiting import eventually
from tests.support.watching import Observer

RENEWAL = b"+WPI"


@pytest_asyncio.fixture
async def seen(nats: NatsServer) -> AsyncIterator[Observer]:
    """Collects what settles or renews a delivery, from any connection."""
    async with Observer(nats.url, "$JS.ACK.>") as observer:
        yield observer


@pytest_asyncio.fixture
async def other(new_broker: NewBroker) -> Broker:
    return await new_broker()


async def publish(broker: Broker, name: str, number: int = 3) -> None:
    for job in range(number):
        ack = await broker.publish(f"heimdex.jobs.extracting.{name}{job}", b"{}", {}, timeout=10)
        assert ack.error is None


async def hold(holder: Holder) -> list[Delivery]:
    await publish(holder.broker, "held")
    deliveries = await take(holder, "extracting", 3)
    for delivery in deliveries:
        delivery.hold()
    return deliveries


async def renewed(seen: Observer, broker: Broker) -> list[str]:
    """Return the reply subjects of all renewals until now."""
    await broker.flush(10)
    await seen.nc.flush()
    return [msg.subject for msg in seen.seen if msg.data == RENEWAL]


async def test_every_held_delivery_is_renewed_until_the_holder_runs_again(
    holder: Holder, other: Broker, seen: Observer
) -> None:
    deliveries = await hold(holder)
    stand_in = StandIn(holder, other)
    await stand_in.renew_all(lambda: True)
    assert sorted(await renewed(seen, other)) == sorted(delivery.reply for delivery in deliveries)
    deliveries[0].let_go()
    await stand_in.renew_all(lambda: True)
    assert len(await renewed(seen, other)) == 3 + 2
    await stand_in.renew_all(lambda: False)
    assert len(await renewed(seen, other)) == 3 + 2


async def test_a_held_message_that_was_deleted_is_not_renewed_and_the_others_are(
    holder: Holder, other: Broker, seen: Observer
) -> None:
    deliveries = await hold(holder)
    assert await other.delete(subjects.JOBS, deliveries[-1].metadata.sequence)
    await StandIn(holder, other).renew_all(lambda: True)
    assert sorted(await renewed(seen, other)) == sorted(delivery.reply for delivery in deliveries[:-1])


async def test_nothing_is_renewed_in_a_stream_that_was_created_again_with_other_messages(
    holder: Holder, other: Broker, seen: Observer
) -> None:
    deliveries = await hold(holder)
    config = (await stream(other))["config"]
    # The holder's own check does not run: its event loop is blocked.
    await other.api(f"STREAM.DELETE.{subjects.JOBS}")
    await other.api(f"STREAM.CREATE.{subjects.JOBS}", config)
    await publish(other, "another")
    assert all(delivery.is_current for delivery in deliveries), "as far as the holder knows"
    await StandIn(holder, other).renew_all(lambda: True)
    assert await renewed(seen, other) == []


async def test_after_a_reconnection_the_stream_is_compared_again(
    holder: Holder, other: Broker, seen: Observer, nats: NatsServer
) -> None:
    await hold(holder)
    stand_in = StandIn(holder, other)
    await stand_in.renew_all(lambda: True)
    before = len(await renewed(seen, other))
    reconnections = other.nc.stats["reconnects"]
    other.nc._abort()
    await eventually(lambda: other.connected and other.nc.stats["reconnects"] > reconnections)
    config = (await stream(other))["config"]
    await other.api(f"STREAM.DELETE.{subjects.JOBS}")
    await other.api(f"STREAM.CREATE.{subjects.JOBS}", config)
    await publish(other, "another")
    await stand_in.renew_all(lambda: True)
    assert len(await renewed(seen, other)) == before
