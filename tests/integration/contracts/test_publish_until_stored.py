"""A failed attempt or a callback's result is published until it is stored, so that a job's history is complete."""

import asyncio
from typing import Any, cast

import pytest

from heimdex_contracts import subjects
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.publish_until_stored import publish_until_stored
from heimdex_contracts.runtime.jetstream.publisher import Envelope
from heimdex_contracts.runtime.jetstream.topology import Topology
from tests.integration.conftest import consumer, count, stream
from tests.support.histories import new_id
from tests.support.recording_logger import RecordingLogger
from tests.support.servers import NatsServer
from tests.support.waiting import eventually


@pytest.fixture
def message() -> Envelope:
    job_id = new_id()
    return Envelope(subjects.attempt_subject("extracting", job_id), b"x" * 100, {"Nats-Msg-Id": f"{job_id}.0.1"})


class Publishing:
    """The publish of a message, which runs in the background."""

    def __init__(self, broker: Broker, topology: Topology, message: Envelope, journal: RecordingLogger) -> None:
        self.stopping = asyncio.Event()
        log = cast("Any", journal)
        self.task = asyncio.create_task(
            publish_until_stored(broker, topology, subjects.ATTEMPTS, message, self.stopping, log)
        )


async def limit(broker: Broker, bytes_each: int) -> None:
    """Limit the size of a message of HEIMDEX_ATTEMPTS, so that JetStream rejects a larger one; -1: no limit."""
    config = (await stream(broker, subjects.ATTEMPTS))["config"]
    await broker.api(f"STREAM.UPDATE.{subjects.ATTEMPTS}", {**config, "max_msg_size": bytes_each})


async def test_a_rejected_message_is_logged_and_published_until_jetstream_accepts_it(
    ready: Broker, topology: Topology, message: Envelope, journal: RecordingLogger
) -> None:
    await limit(ready, 10)
    publishing = Publishing(ready, topology, message, cast("Any", journal.bind(job_id="some-id")))
    await eventually(lambda: len(journal.of("publish_refused")) >= 2)
    assert journal.of("publish_refused")[0]["job_id"] == "some-id"
    await limit(ready, -1)
    await publishing.task
    assert await count(ready, subjects.ATTEMPTS) == 1


async def test_a_stop_ends_the_retries_with_an_error(
    ready: Broker, topology: Topology, message: Envelope, journal: RecordingLogger
) -> None:
    await limit(ready, 10)
    publishing = Publishing(ready, topology, message, journal)
    await eventually(lambda: journal.of("publish_refused"))
    publishing.stopping.set()
    with pytest.raises(BrokerUnavailable, match="was not stored"):
        await publishing.task
    assert await count(ready, subjects.ATTEMPTS) == 0


async def test_a_message_is_stored_while_the_process_stops(
    ready: Broker, topology: Topology, message: Envelope, journal: RecordingLogger
) -> None:
    publishing = Publishing(ready, topology, message, journal)
    publishing.stopping.set()
    await publishing.task
    assert await count(ready, subjects.ATTEMPTS) == 1


@pytest.mark.allows("topology")
async def test_a_message_waits_until_its_consumer_exists(
    ready: Broker, topology: Topology, message: Envelope, journal: RecordingLogger
) -> None:
    """JetStream acknowledges and drops a message for which no consumer exists."""
    await ready.api(f"CONSUMER.DELETE.{subjects.ATTEMPTS}.{subjects.STATUS_STORE}")
    topology.known.clear()  # as after a disconnection
    publishing = Publishing(ready, topology, message, journal)
    for _ in range(10):  # long enough for a publish that does not wait
        assert await count(ready, subjects.ATTEMPTS) == 0
    await topology.ensure()
    await publishing.task
    assert (await consumer(ready, subjects.STATUS_STORE, subjects.ATTEMPTS))["num_pending"] == 1


async def test_a_stop_during_an_outage_ends_the_wait(
    ready: Broker, topology: Topology, message: Envelope, nats: NatsServer, journal: RecordingLogger
) -> None:
    nats.kill()
    await eventually(lambda: not ready.connected)
    publishing = Publishing(ready, topology, message, journal)
    await asyncio.sleep(0)
    publishing.stopping.set()
    with pytest.raises(BrokerUnavailable, match="was not stored"):
        await publishing.task
