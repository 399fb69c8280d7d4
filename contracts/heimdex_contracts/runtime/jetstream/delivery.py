"""One delivery of a message to a durable consumer, from its arrival to its settlement. No other code settles one.

A delivery is settled by its sequence, and a stream that lost its disk assigns the same sequences to other messages. A
settlement is therefore sent only while the stream is known to be the one from which the delivery came. A delivery that
is not settled is redelivered after its ack wait.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream.client import headers_of
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.message import Metadata
from heimdex_contracts.runtime.jetstream.topology import Topology, exists
from heimdex_contracts.subjects import NANOSECOND

_ACK: Final = b"+ACK"
_NAK: Final = b"-NAK"
_TERM: Final = b"+TERM"
_IN_PROGRESS: Final = b"+WPI"
#: The beginning of the id of a copy that the status store published (its `undeliverable`), as a header.
COPY_ID: Final = b"Nats-Msg-Id: again."


@dataclass(frozen=True, slots=True)
class Holder:
    """The state that all deliveries to one process share.

    held: the deliveries whose leases are renewed (see `leases`).
    """

    broker: Broker
    topology: Topology
    held: set["Delivery"] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.topology.held = self.held


class Delivery:
    """A delivered message, and the only way to settle it. `reply`: the subject on which it is settled."""

    __slots__ = ("_block", "_holder", "data", "metadata", "reply", "subject")

    def __init__(self, subject: str, reply: str, data: bytes, block: bytes, metadata: Metadata, holder: Holder) -> None:
        self.subject = subject
        self.reply = reply
        self.data = data
        self.metadata = metadata
        self._block = block
        self._holder = holder

    @property
    def size(self) -> int:
        """The size in bytes, as the server counts it against the limit of a pull request, or a little less."""
        return len(self.subject) + len(self.reply) + len(self._block) + len(self.data)

    @property
    def headers(self) -> dict[str, str]:
        """The message's headers. They are decoded at each access, because few deliveries need them."""
        return headers_of(self._block) if self._block else {}

    @property
    def key(self) -> tuple[int, int]:
        """Identifies the message by its sequence and its time of storage, also across a stream that lost its data."""
        return (self.metadata.sequence, self.metadata.stored_ns)

    @property
    def redelivered(self) -> bool:
        """Whether the message was delivered before, perhaps as the message of which this one is a copy."""
        return self.metadata.num_delivered > 1 or COPY_ID in self._block

    @property
    def is_current(self) -> bool:
        """Whether the stream is the one from which the delivery came; False while that is unknown."""
        return self._holder.topology.is_current(self.reply, self.metadata)

    def hold(self) -> None:
        """Renew the lease until the delivery is settled or `let_go` is called."""
        self._holder.held.add(self)

    def let_go(self) -> None:
        """Stop renewing the lease. An unsettled delivery is redelivered after its ack wait."""
        self._holder.held.discard(self)

    def ack(self) -> None:
        """Acknowledge the delivery. Call it only once the work is done and its successor is stored."""
        self._settle(_ACK)

    def nak(self, delay_seconds: float = 0.0) -> None:
        """Request a redelivery after this delay."""
        self._settle(_NAK if not delay_seconds else b'%s {"delay": %d}' % (_NAK, round(delay_seconds * NANOSECOND)))

    def term(self) -> None:
        """Terminate the delivery: the message is never redelivered, although it was not processed."""
        self._settle(_TERM)

    def renew(self) -> None:
        """Restart the ack wait. Raises BrokerUnavailable if NATS is not connected."""
        if self.is_current:
            self._holder.broker.send(self.reply, _IN_PROGRESS)

    def ack_predecessor(self, reply: str) -> None:
        """Acknowledge the predecessor's delivery, by its reply subject, on behalf of its holder.

        A worker may be killed after it has published this message and before it has acknowledged the predecessor.
        """
        if self.is_current and self._holder.topology.is_current(reply):
            with contextlib.suppress(BrokerUnavailable):
                self._holder.broker.send(reply, _ACK)

    def _settle(self, answer: bytes) -> None:
        # Stop the renewals first: a renewal after a nak would cancel its delay.
        self.let_go()
        if self.is_current:
            # If the connection breaks, the message is redelivered, and its next holder looks up the job's state.
            with contextlib.suppress(BrokerUnavailable):
                self._holder.broker.send(self.reply, answer)


class StandIn:
    """Renews the leases of held deliveries through a connection of its own, in another thread than their holder's.

    For a holder whose event loop does not answer: it can neither renew a lease nor learn that a stream is another one.
    """

    def __init__(self, holder: Holder, broker: Broker) -> None:
        self._holder = holder
        self._broker = broker
        #: The newest delivery of each stream that this connection has found in it. Older messages then exist too.
        self._newest: dict[str, int] = {}
        broker.on_disconnect.append(self._newest.clear)

    async def renew_all(self, wanted: Callable[[], bool]) -> None:
        """Restart the ack wait of each delivery whose message is still in its stream, while `wanted` returns True.

        Raises BrokerUnavailable or JetStreamError.
        """
        # Copied at once: the holder's thread may change the set.
        deliveries = [delivery for delivery in tuple(self._holder.held) if delivery.is_current]
        for delivery in sorted(deliveries, key=attrgetter("metadata.sequence"), reverse=True):
            metadata = delivery.metadata
            if metadata.sequence > self._newest.get(metadata.stream, 0):
                if not await exists(self._broker, metadata):
                    continue  # the job was canceled, or the server has lost its newest messages
                self._newest[metadata.stream] = metadata.sequence
            # A settled delivery has been let go. A renewal after a nak would cancel its delay.
            if delivery in self._holder.held and wanted():
                self._broker.send(delivery.reply, _IN_PROGRESS, linger=0)
