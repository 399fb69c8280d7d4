"""The position of the status store in a stream: what can be proved about recorded messages while Postgres is down."""

from dataclasses import dataclass
from typing import Any

from heimdex_contracts import subjects
from heimdex_contracts.runtime.jetstream.connection import Broker


@dataclass(frozen=True, slots=True)
class ConsumerPosition:
    """The position of the status store's consumer of one stream, in stream sequences.

    floor: every message up to and including it is recorded. delivered: the last message that was delivered.
    contiguous: none of the messages delivered after the floor is acknowledged.
    """

    floor: int
    delivered: int
    contiguous: bool

    def is_recorded(self, sequence: int) -> bool:
        """Whether it is certain that this message is recorded."""
        return sequence <= self.floor

    def is_unrecorded(self, sequence: int) -> bool:
        """Whether it is certain that the store had acknowledged neither this message nor any later one."""
        return sequence > self.delivered or (sequence > self.floor and self.contiguous)


async def consumer_position(broker: Broker, stream: str) -> ConsumerPosition:
    """Read the consumer's position from NATS. Raises BrokerUnavailable or JetStreamError."""
    info: dict[str, Any] = await broker.api(f"CONSUMER.INFO.{stream}.{subjects.STATUS_STORE}", timeout=1.0)
    floor, delivered, unacknowledged = info["ack_floor"], info["delivered"], info["num_ack_pending"]
    return ConsumerPosition(
        # With nothing outstanding, the floor is the last delivered message, even if messages before it were deleted.
        floor=delivered["stream_seq"] if unacknowledged == 0 else floor["stream_seq"],
        delivered=delivered["stream_seq"],
        contiguous=delivered["consumer_seq"] - floor["consumer_seq"] == unacknowledged,
    )
