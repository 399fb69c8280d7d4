"""Streams and consumers on a real server: complete before traffic, created again if removed, repaired if changed."""

import asyncio
import itertools
from typing import Any

import pytest

from heimdex_contracts import streams, subjects
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.topology import Topology
from tests.integration.conftest import ACK_WAIT_SECONDS, STAGES, NewBroker, consumer, count, make_topology, stream
from tests.support.recording_logger import RecordingLogger
from tests.support.servers import NatsServer
from tests.support.waiting import eventually

DURABLES = {"status-store", "later", *STAGES}


async def durables(broker: Broker, name: str = subjects.JOBS) -> set[str]:
    return set((await broker.api(f"CONSUMER.NAMES.{name}"))["consumers"] or [])


@pytest.mark.containers
async def test_ensure_creates_every_stream_and_durable(broker: Broker, topology: Topology) -> None:
    await topology.ensure()
    assert topology.ready.is_set()
    names = set((await broker.api("STREAM.NAMES"))["streams"])
    assert names == {stream.name for stream in streams.for_stages(STAGES, ACK_WAIT_SECONDS)}
    assert await durables(broker) == DURABLES
    assert (await stream(broker))["config"]["subjects"] == ["heimdex.jobs.*.*"]


async def test_ensure_changes_nothing_when_everything_is_there(
    ready: Broker, topology: Topology, journal: RecordingLogger
) -> None:
    journal.entries.clear()
    await topology.ensure()
    assert journal.entries == []


@pytest.mark.containers
async def test_no_message_is_acknowledged_and_dropped_while_the_topology_is_created(
    new_broker: NewBroker, journal: RecordingLogger
) -> None:
    makers = [await new_broker() for _ in range(3)]
    stored: list[int] = []
    done = asyncio.Event()

    async def publish(broker: Broker, number: int) -> None:
        """Publish as fast as possible until the topology is complete, and for a while afterwards."""
        accepted_after = 0
        attempt = 0
        while accepted_after < 20:
            attempt += 1
            try:
                ack = await broker.publish(f"heimdex.jobs.extracting.{number}-{attempt}", b"{}", {}, timeout=1)
            except BrokerUnavailable:
                continue  # refused: nobody listens there yet
            if ack.error is None:
                stored.append(ack.seq)
                accepted_after += done.is_set()

    publishers = [asyncio.create_task(publish(await new_broker(), number)) for number in range(3)]
    await asyncio.gather(*(make_topology(broker, journal, own=()).ensure() for broker in makers))
    done.set()
    await asyncio.gather(*publishers)
    assert await count(makers[0]) == len(stored) >= 60
    assert (await consumer(makers[0], "extracting"))["num_pending"] == len(stored)
    assert (await consumer(makers[0], "status-store"))["num_pending"] == len(stored)


async def test_services_that_start_together_give_a_stream_its_subjects_one_after_the_other(
    new_broker: NewBroker, journal: RecordingLogger
) -> None:
    """If two do so at the same moment, nats-server stores each message twice and refuses every batch."""
    store = make_topology(await new_broker(), journal)
    others = [make_topology(await new_broker(), journal, own=(stage,)) for stage in STAGES]
    turns = {topology: await _turn(topology) for topology in (store, *others)}
    assert turns[store] < min(turns[topology] for topology in others)
    assert len(set(turns.values())) == len(turns), "each has a turn of its own"


async def _turn(topology: Topology) -> float:
    """Return when it is this service's turn to give a stream without subjects its own."""
    making = asyncio.create_task(topology.ensure())
    await eventually(lambda: topology._turn_at > 0)
    making.cancel()
    return topology._turn_at


async def test_a_publish_is_refused_while_the_stream_waits_for_its_consumers(broker: Broker) -> None:
    jobs = streams.for_stages(STAGES, ACK_WAIT_SECONDS)[0]
    await broker.api(f"STREAM.CREATE.{jobs.name}", jobs.config(1, (jobs.waiting_subject(),)))
    with pytest.raises(BrokerUnavailable):
        await broker.publish("heimdex.jobs.extracting.some-id", b"{}", {}, timeout=1)


async def test_a_partly_created_stream_is_completed_after_its_creator_died(broker: Broker, topology: Topology) -> None:
    jobs = streams.for_stages(STAGES, ACK_WAIT_SECONDS)[0]
    await broker.api(f"STREAM.CREATE.{jobs.name}", jobs.config(1, (jobs.waiting_subject(),)))
    await topology.ensure()
    assert await durables(broker) == DURABLES
    assert (await stream(broker))["config"]["subjects"] == ["heimdex.jobs.*.*"]


@pytest.mark.parametrize("name", ["HEIMDEX_JOBS", "HEIMDEX_ATTEMPTS", "HEIMDEX_PROGRESS", "HEIMDEX_UNUSABLE"])
async def test_a_deleted_stream_is_created_again(ready: Broker, topology: Topology, name: str) -> None:
    before = await durables(ready, name)
    await ready.api(f"STREAM.DELETE.{name}")
    await topology.ensure()
    assert await durables(ready, name) == before


async def test_a_deleted_durable_is_created_again_and_gets_the_stored_messages(
    ready: Broker, topology: Topology
) -> None:
    await ready.publish("heimdex.jobs.analyzing.some-id", b"{}", {})
    await ready.api("CONSUMER.DELETE.HEIMDEX_JOBS.analyzing")
    await topology.ensure()
    assert (await consumer(ready, "analyzing"))["num_pending"] == 1


async def test_a_durable_whose_configuration_drifted_is_repaired(ready: Broker, topology: Topology) -> None:
    config: dict[str, Any] = (await consumer(ready, "analyzing"))["config"]
    changed = {**config, "ack_wait": 7 * 10**9, "max_ack_pending": 3, "description": "somebody's"}
    await ready.api(
        "CONSUMER.DURABLE.CREATE.HEIMDEX_JOBS.analyzing", {"stream_name": "HEIMDEX_JOBS", "config": changed}
    )
    await topology.ensure()
    mended = (await consumer(ready, "analyzing"))["config"]
    assert (mended["ack_wait"], mended["max_ack_pending"]) == (ACK_WAIT_SECONDS * 10**9, -1)
    assert mended["description"] == "somebody's"


async def test_a_stream_whose_configuration_drifted_is_repaired(ready: Broker, topology: Topology) -> None:
    config: dict[str, Any] = (await stream(ready, "HEIMDEX_PROGRESS"))["config"]
    await ready.api("STREAM.UPDATE.HEIMDEX_PROGRESS", {**config, "max_age": 5 * 10**9, "max_bytes": 1024 * 1024})
    await topology.ensure()
    mended = (await stream(ready, "HEIMDEX_PROGRESS"))["config"]
    assert (mended["max_age"], mended["max_bytes"]) == (config["max_age"], config["max_bytes"])


async def test_a_new_stage_gets_its_durable_on_an_existing_stream(ready: Broker, journal: RecordingLogger) -> None:
    await make_topology(ready, journal, (*STAGES, "painting")).ensure()
    assert await durables(ready) == {*DURABLES, "painting"}


async def test_an_unknown_stage_keeps_its_durable(ready: Broker, journal: RecordingLogger) -> None:
    await make_topology(ready, journal, (*STAGES, "painting")).ensure()
    await make_topology(ready, journal).ensure()
    assert await durables(ready) == {*DURABLES, "painting"}


async def test_ensure_waits_for_a_server_that_is_down_and_logs_it_once(
    broker: Broker, topology: Topology, nats: NatsServer, journal: RecordingLogger
) -> None:
    nats.stop()
    await eventually(lambda: not broker.connected)
    ensuring = asyncio.create_task(topology.ensure())
    await eventually(lambda: journal.of("jetstream_waiting"))
    assert not topology.ready.is_set()
    nats.start()
    await asyncio.wait_for(ensuring, 30)
    # Once more after the reconnection, for what was made before may be gone.
    await eventually(topology.ready.is_set)
    assert await durables(broker) == DURABLES
    reasons = [entry["error"] for entry in journal.of("jetstream_waiting")]
    assert all(one != other for one, other in itertools.pairwise(reasons))


async def test_all_streams_are_created_again_after_the_server_lost_its_disk(
    ready: Broker, topology: Topology, nats: NatsServer
) -> None:
    nats.stop()
    nats.wipe()
    await eventually(lambda: not topology.ready.is_set())
    nats.start()
    await eventually(topology.ready.is_set)
    assert await durables(ready) == DURABLES
