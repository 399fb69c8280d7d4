"""The standing pull request against a real server: prompt, within its capacity, and without loss."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
import pytest_asyncio

from heimdex_contracts import subjects
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.delivery import Delivery, Holder
from heimdex_contracts.runtime.jetstream.pull_consumer import PullConsumer
from heimdex_contracts.runtime.jetstream.topology import Topology
from tests.integration.conftest import NewBroker, consumer, holder_on
from tests.support.recording_logger import RecordingLogger
from tests.support.servers import NatsServer
from tests.support.waiting import PATIENCE_SECONDS, eventually


class Owner:
    """Holds its deliveries until `release`."""

    def __init__(
        self,
        holder: Holder,
        capacity: int,
        journal: RecordingLogger,
        ack_wait_seconds: float = 20.0,
        capacity_bytes: int | None = None,
    ) -> None:
        self.may_ask = True
        self.held: list[Delivery] = []
        self.got: list[int] = []
        self.most_held = self.most_bytes = 0
        self.puller = PullConsumer(
            holder,
            subjects.JOBS,
            "extracting",
            capacity,
            ack_wait_seconds,
            self.take,
            cast("Any", journal),
            lambda: self.may_ask,
            capacity_bytes,
        )

    def take(self, msg: Delivery) -> None:
        self.held.append(msg)
        self.got.append(msg.metadata.sequence)
        self.most_held = max(self.most_held, len(self.held))
        self.most_bytes = max(self.most_bytes, sum(each.size for each in self.held))

    async def release(self, number: int = 1_000_000) -> None:
        """Acknowledge this many of the held deliveries."""
        for _ in range(min(number, len(self.held))):
            msg = self.held.pop(0)
            msg.ack()
            self.puller.release(1, msg.size)

    async def serve(self) -> None:
        """Acknowledge every delivery as it arrives."""
        while True:
            await self.release()
            await asyncio.sleep(0.005)


MakeOwner = Callable[[int], Owner]


@pytest_asyncio.fixture
async def owner(holder: Holder, journal: RecordingLogger) -> AsyncIterator[MakeOwner]:
    owners: list[Owner] = []

    def make(capacity: int) -> Owner:
        owners.append(Owner(holder, capacity, journal))
        return owners[-1]

    yield make
    for each in owners:
        await each.puller.stop()


async def publish(broker: Broker, number: int, first: int = 0, size: int = 2) -> None:
    for job in range(first, first + number):
        ack = await broker.publish(f"heimdex.jobs.extracting.{job}", b"0" * size, {}, timeout=10)
        assert ack.error is None


async def outstanding(broker: Broker) -> int:
    return int((await consumer(broker, "extracting"))["num_ack_pending"])


async def fits(broker: Broker, capacity: int) -> bool:
    return await outstanding(broker) <= capacity


@pytest.mark.containers
async def test_messages_arrive_promptly_after_idleness(ready: Broker, owner: MakeOwner) -> None:
    one = owner(10)
    await one.puller.start()
    serving = asyncio.create_task(one.serve())
    for number in range(4):
        # A pull that ends by its expiry or its heartbeat would take 10 s or more.
        await publish(ready, 3, first=number * 3)
        await eventually(lambda number=number: len(one.got) == 3 * number + 3, timeout=8)
        await asyncio.sleep(0.3)  # idle
    serving.cancel()


async def test_nothing_is_requested_while_pulling_is_paused(
    ready: Broker, holder: Holder, journal: RecordingLogger
) -> None:
    one = Owner(holder, 10, journal, ack_wait_seconds=1)
    await one.puller.start()

    async def waiting() -> int:
        return int((await consumer(ready, "extracting"))["num_waiting"])

    async def none_waits() -> bool:
        return not await waiting()

    await eventually(waiting)
    one.may_ask = False
    await eventually(none_waits)
    await publish(ready, 3)
    one.puller.reset()
    assert await none_waits()
    assert one.got == []
    one.may_ask = True
    await eventually(lambda: len(one.got) == 3)
    await one.puller.stop()


@pytest.mark.parametrize("capacity", [1, 2, 7])
async def test_at_most_the_capacity_is_outstanding_and_each_message_arrives_once(
    ready: Broker, owner: MakeOwner, capacity: int
) -> None:
    await publish(ready, 60)
    one = owner(capacity)
    await one.puller.start()
    while len(one.got) < 60:
        await eventually(lambda: one.held)
        # The server handles acknowledgements in its own time: what we held and let go may still count for a moment.
        await eventually(lambda: fits(ready, capacity))
        assert len(one.held) <= capacity
        await one.release(1 + len(one.got) % 3)
    await one.release()
    assert sorted(one.got) == list(range(1, 61))
    assert one.most_held <= capacity


#: Half of it is a prime number, so that messages of one size never fill a request exactly (see CAPACITY_BYTES).
BYTES = 2 * 50_021


async def bounded(ready: Broker, holder: Holder, journal: RecordingLogger) -> Owner:
    one = Owner(holder, 1000, journal, capacity_bytes=BYTES)
    await one.puller.start()
    return one


@pytest.mark.parametrize("size", [1, 700, 9_000, 45_000])
async def test_at_most_the_capacity_in_bytes_is_outstanding(
    ready: Broker, holder: Holder, journal: RecordingLogger, size: int
) -> None:
    number = min(120, 40 * BYTES // (size * 10))
    one = await bounded(ready, holder, journal)
    await publish(ready, number, size=size)
    expected = min(number, 2 * (BYTES // 2 // (size + 200)))
    await eventually(lambda: len(one.held) >= expected)
    while len(one.got) < number:
        await eventually(lambda: one.held)
        await one.release(1 + len(one.got) % 3)
    await one.release()
    assert sorted(one.got) == list(range(1, number + 1))
    assert one.most_bytes <= BYTES
    # What a lost request would need. All of this takes much less time.
    assert not [entry for entry in journal.entries if entry["event"] in {"pull_forgotten", "pull_ended"}]
    await one.puller.stop()


async def test_a_message_that_is_larger_than_the_capacity_comes_alone(
    ready: Broker, holder: Holder, journal: RecordingLogger
) -> None:
    one = await bounded(ready, holder, journal)
    await publish(ready, 3, size=1_000)
    await eventually(lambda: len(one.held) == 3)
    for first, size in ((10, 60_000), (11, 200_000)):
        await publish(ready, 1, first=first, size=size)
    await publish(ready, 3, first=20)
    await one.release(2)
    assert len(one.got) == 3
    await one.release()
    await eventually(lambda: len(one.held) == 1)
    await one.release()
    await eventually(lambda: len(one.held) == 1)
    await one.release()
    await eventually(lambda: len(one.held) == 3)
    assert one.got == list(range(1, 9))
    assert not [entry for entry in journal.entries if entry["event"] in {"pull_forgotten", "pull_ended"}]
    await one.puller.stop()


async def test_two_owners_share_the_queue_and_get_different_messages(
    ready: Broker, new_broker: NewBroker, owner: MakeOwner, journal: RecordingLogger
) -> None:
    one, other = owner(5), Owner(await holder_on(await new_broker(), journal), 5, journal)
    for each in (one, other):
        await each.puller.start()
    serving = [asyncio.create_task(each.serve()) for each in (one, other)]
    await publish(ready, 100)
    await eventually(lambda: len(one.got) + len(other.got) >= 100)
    assert sorted(one.got + other.got) == list(range(1, 101))
    for task in serving:
        task.cancel()
    await other.puller.stop()


async def test_messages_arrive_after_the_durable_was_deleted_and_created_again(
    ready: Broker, owner: MakeOwner, topology: Topology
) -> None:
    one = owner(5)
    await one.puller.start()
    serving = asyncio.create_task(one.serve())
    await publish(ready, 5)
    await eventually(lambda: len(one.got) == 5)
    await ready.api("CONSUMER.DELETE.HEIMDEX_JOBS.extracting")
    await topology.ensure()
    await publish(ready, 5, first=5)
    await eventually(lambda: len(set(one.got)) == 10)
    serving.cancel()


async def test_messages_arrive_after_a_restart_of_the_server(ready: Broker, owner: MakeOwner, nats: NatsServer) -> None:
    one = owner(5)
    await one.puller.start()

    async def reset() -> None:
        one.puller.reset()

    ready.on_reconnect.append(reset)
    serving = asyncio.create_task(one.serve())
    for kill in (nats.stop, nats.kill):
        before = len(set(one.got))
        await publish(ready, 5, first=before)
        await eventually(lambda before=before: len(set(one.got)) == before + 5)
        kill()
        await eventually(lambda: not ready.connected)
        nats.start()
        await eventually(lambda: ready.connected)
    await publish(ready, 5, first=100)
    await eventually(lambda: len(set(one.got)) == 15)
    serving.cancel()


@pytest.mark.containers
async def test_stop_loses_no_message_that_the_server_has_sent(ready: Broker, owner: MakeOwner) -> None:
    for round_ in range(5):
        await ready.api("STREAM.PURGE.HEIMDEX_JOBS")
        one = owner(40)
        await publish(ready, 100, first=1000 * round_)
        await one.puller.start()
        serving = asyncio.create_task(one.serve())
        await eventually(lambda one=one, wanted=10 * round_: len(one.got) >= wanted)
        await one.puller.stop()
        serving.cancel()
        await ready.nc.flush()
        # Every message that the server counts as handed out is in our hands, or was acknowledged by us.
        assert await outstanding(ready) == len(one.held)
        assert one.puller.held == len(one.held)
        await one.release()
        await ready.nc.flush()


async def test_a_request_with_a_limit_in_bytes_that_is_used_up_is_followed_by_the_next_at_once(
    ready: Broker, holder: Holder, journal: RecordingLogger
) -> None:
    # The server ends such a request with a status of its own, "Batch Completed", after the last message.
    one = Owner(holder, 1, journal, capacity_bytes=1_000_000)
    await one.puller.start()
    serving = asyncio.create_task(one.serve())
    await publish(ready, 30)
    await eventually(lambda: len(one.got) == 30, timeout=PATIENCE_SECONDS)
    serving.cancel()
    await one.puller.stop()
    assert not journal.of("pull_ended")


async def test_a_stopped_puller_requests_nothing_more(ready: Broker, owner: MakeOwner) -> None:
    one = owner(5)
    await one.puller.start()
    await one.puller.stop()
    await one.puller.stop()
    await ready.nc.flush()
    await publish(ready, 3)
    one.puller.reset()
    await ready.nc.flush()
    assert one.got == []
    assert await outstanding(ready) == 0


async def test_a_puller_that_started_before_its_durable_works_once_it_exists(
    broker: Broker, topology: Topology, journal: RecordingLogger
) -> None:
    one = Owner(await holder_on(broker, journal), 5, journal)
    await one.puller.start()
    await topology.ensure()
    await publish(broker, 3)
    await eventually(lambda: len(one.got) == 3, timeout=PATIENCE_SECONDS)
    await one.puller.stop()
