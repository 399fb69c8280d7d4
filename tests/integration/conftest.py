"""Fixtures for tests of one package against a real NATS server, a real Postgres, or both."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, cast

import asyncpg
import pytest
import pytest_asyncio

from heimdex_contracts import streams, subjects
from heimdex_contracts.runtime.jetstream.client import header_block
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.delivery import Delivery, Holder
from heimdex_contracts.runtime.jetstream.message import Metadata, metadata_of
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_contracts.runtime.settings import Settings
from heimdex_status_store.database import migrate
from tests.conftest import allowed
from tests.support.auditor import Auditor, Line
from tests.support.recording_logger import RecordingLogger
from tests.support.servers import NatsServer

STAGES = ("extracting", "analyzing", "indexing")
#: Long enough that no message held by a test is redelivered, even on a busy machine.
ACK_WAIT_SECONDS = 60

NewBroker = Callable[..., Awaitable[Broker]]


@pytest.fixture
def journal(request: pytest.FixtureRequest) -> Iterator[RecordingLogger]:
    """The logger of the code under test. After the test, its entries are audited like the logs of services."""
    logger = RecordingLogger()
    yield logger
    auditor = Auditor()
    if kinds := allowed(request.node):
        auditor.allow(*kinds)
    auditor.check(Line("the code under test", entry) for entry in logger.entries)


@pytest_asyncio.fixture
async def new_broker(nats: NatsServer, journal: RecordingLogger) -> AsyncIterator[NewBroker]:
    """A function that creates connected brokers, of a subclass if given. They are closed after the test."""
    brokers: list[Broker] = []

    async def make(kind: type[Broker] = Broker) -> Broker:
        broker = kind(Settings(nats_url=nats.url), "test", cast("Any", journal))
        brokers.append(broker)
        await broker.connect()
        return broker

    yield make
    for broker in brokers:
        await broker.close()


@pytest_asyncio.fixture
async def broker(new_broker: NewBroker) -> Broker:
    """A connected broker. Its server has no streams unless the test creates them."""
    return await new_broker()


@pytest.fixture
def topology(broker: Broker, journal: RecordingLogger) -> Topology:
    """The topology of all streams and consumers. None of them exists yet."""
    return make_topology(broker, journal)


@pytest_asyncio.fixture
async def ready(broker: Broker, topology: Topology) -> Broker:
    """A connected broker whose streams and consumers exist."""
    await topology.ensure()
    return broker


@pytest_asyncio.fixture
async def holder(ready: Broker, topology: Topology) -> Holder:
    """The holder of the deliveries that `ready` receives."""
    return Holder(ready, topology)


@pytest_asyncio.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to an empty database with the current schema."""
    connection = await asyncpg.connect(database_url)
    await migrate(connection)
    yield connection
    await connection.close()


def make_topology(
    broker: Broker,
    journal: RecordingLogger,
    stages: tuple[str, ...] = STAGES,
    own: tuple[str, ...] = (subjects.STATUS_STORE,),
) -> Topology:
    return Topology(broker, streams.for_stages(stages, ACK_WAIT_SECONDS), 1, cast("Any", journal), own=own)


async def stream(broker: Broker, name: str = subjects.JOBS) -> dict[str, Any]:
    return await broker.api(f"STREAM.INFO.{name}")


async def consumer(broker: Broker, name: str, stream_name: str = subjects.JOBS) -> dict[str, Any]:
    return await broker.api(f"CONSUMER.INFO.{stream_name}.{name}")


async def count(broker: Broker, name: str = subjects.JOBS) -> int:
    return int((await stream(broker, name))["state"]["messages"])


async def holder_on(broker: Broker, journal: RecordingLogger) -> Holder:
    """Create a holder whose topology has the current state of the streams."""
    topology = make_topology(broker, journal)
    await topology.ensure()
    return Holder(broker, topology)


async def take(holder: Holder, durable: str, number: int = 1) -> list[Delivery]:
    """Pull `number` messages with a single pull request, and return their deliveries."""
    nc = holder.broker.nc
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)
    body = b'{"batch": %d, "expires": 10000000000}' % number
    await nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{subjects.JOBS}.{durable}", body, reply=inbox)
    taken = [await subscription.next_msg(timeout=10) for _ in range(number)]
    await subscription.unsubscribe()
    return [
        Delivery(
            msg.subject,
            msg.reply,
            msg.data,
            header_block(msg.headers or {}),
            cast("Metadata", metadata_of(msg.reply)),
            holder,
        )
        for msg in taken
    ]
