"""How far the status store has got with a stream: what the stream alone can prove while Postgres is away."""

from dataclasses import dataclass
from typing import Any

from heimdex_contracts import subjects
from heimdex_contracts.runtime.jetstream.connection import Broker


@dataclass(frozen=True, slots=True)
class ConsumerPosition:
    """The status store's consumer of one stream, as stream sequences.

    floor: everything up to here is recorded. contiguous: nothing past the floor is, of what was delivered.
    """

    floor: int
    delivered: int
    contiguous: bool

    def has(self, sequence: int) -> bool:
        """Whether this message is surely recorded."""
        return sequence <= self.floor

    def has_not(self, sequence: int) -> bool:
        """Proof that neither this message nor any later one had been acknowledged by the store."""
        return sequence > self.delivered or (sequence > self.floor and self.contiguous)


async def consumer_position(broker: Broker, stream: str) -> ConsumerPosition:
    """Ask the broker. Raises BrokerUnavailable or JetStreamError."""
    info: dict[str, Any] = await broker.api(f"CONSUMER.INFO.{stream}.{subjects.STATUS_STORE}", timeout=1.0)
    floor, delivered, unacknowledged = info["ack_floor"], info["delivered"], info["num_ack_pending"]
    return ConsumerPosition(
        # With nothing outstanding the floor is as far as was delivered, even where messages in between are gone.
        floor=delivered["stream_seq"] if unacknowledged == 0 else floor["stream_seq"],
        delivered=delivered["stream_seq"],
        contiguous=delivered["consumer_seq"] - floor["consumer_seq"] == unacknowledged,
    )
