"""The longest back-off that a pipeline may declare is one that NATS accepts, and keeps through a restart."""

from heimdex_contracts import subjects
from heimdex_contracts.pipelines import MAX_SECONDS
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.delivery import Holder
from tests.integration.conftest import consumer, take
from tests.support.histories import new_id
from tests.support.servers import NatsServer
from tests.support.waiting import eventually


async def test_a_delivery_returned_for_the_longest_delay_is_not_redelivered(
    holder: Holder, ready: Broker, nats: NatsServer
) -> None:
    for _ in range(2):
        await ready.publish(subjects.job_subject("extracting", new_id()), b"{}", {})
    longest, other = await take(holder, "extracting", 2)
    longest.nak(MAX_SECONDS)
    for _ in range(3):
        # NATS redelivers a message at once if it cannot read the delay: then it would come before the other one.
        other.nak(0.3)
        (other,) = await take(holder, "extracting")
        assert other.key != longest.key
    nats.stop()
    await eventually(lambda: not ready.connected)
    nats.start()
    await eventually(lambda: ready.connected and holder.topology.known.is_set())
    other.nak(0.3)
    (other,) = await take(holder, "extracting")
    assert other.key != longest.key
    assert (await consumer(ready, "extracting"))["num_ack_pending"] == 2
