"""One delivery of a message to a durable consumer, from its arrival to its settling. Nothing else settles one.

A delivery is settled by its sequence, and a stream that lost its disk gives the same sequences to other messages. So
nothing is sent unless the stream is known to be the one that the delivery came from. A delivery that is not settled
comes back after its ack wait.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Final

from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream.client import headers_of
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.message import Metadata
from heimdex_contracts.runtime.jetstream.topology import Topology
from heimdex_contracts.subjects import NANOSECOND

_ACK: Final = b"+ACK"
_NAK: Final = b"-NAK"
_TERM: Final = b"+TERM"
_IN_PROGRESS: Final = b"+WPI"


@dataclass(frozen=True, slots=True)
class Holder:
    """What all deliveries to one process share. held: those whose leases are renewed (see `leases`)."""

    broker: Broker
    topology: Topology
    held: set["Delivery"] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.topology.held = self.held


class Delivery:
    """A message as its consumer's owner gets it, and the only way to settle it. `reply`: the subject that does."""

    __slots__ = ("_block", "_holder", "data", "metadata", "reply", "subject")

    def __init__(self, subject: str, reply: str, data: bytes, block: bytes, metadata: Metadata, holder: Holder) -> None:
        self.subject = subject
        self.reply = reply
        self.data = data
        self.metadata = metadata
        self._block = block
        self._holder = holder

    @property
    def headers(self) -> dict[str, str]:
        """Decoded at each access: few deliveries need them."""
        return headers_of(self._block) if self._block else {}

    @property
    def key(self) -> tuple[int, int]:
        """Identifies the message, also among those of a stream that was emptied: sequence, and when it was stored."""
        return (self.metadata.sequence, self.metadata.stored_ns)

    @property
    def is_current(self) -> bool:
        """Whether the stream is the one that the delivery came from; False while that is not known."""
        return self._holder.topology.is_current(self.reply, self.metadata)

    def hold(self) -> None:
        """Have the lease renewed until the delivery is settled or let go."""
        self._holder.held.add(self)

    def let_go(self) -> None:
        """Have the lease renewed no more: what was not settled comes back after its ack wait."""
        self._holder.held.discard(self)

    def ack(self) -> None:
        """The work is done, and what follows it is stored."""
        self._settle(_ACK)

    def nak(self, delay_seconds: float = 0.0) -> None:
        """Have it delivered again, after this delay."""
        self._settle(_NAK if not delay_seconds else b'%s {"delay": %d}' % (_NAK, round(delay_seconds * NANOSECOND)))

    def term(self) -> None:
        """Never have it delivered again, though nothing was done with it."""
        self._settle(_TERM)

    def renew(self) -> None:
        """Begin its ack wait anew. Raises BrokerUnavailable."""
        if self.is_current:
            self._holder.broker.send(self.reply, _IN_PROGRESS)

    def ack_predecessor(self, reply: str) -> None:
        """Acknowledge the delivery that this message follows, by its reply subject, in place of its holder.

        For a worker that was killed after it had published this message, before it acknowledged that delivery.
        """
        if self.is_current and self._holder.topology.is_current(reply):
            with contextlib.suppress(BrokerUnavailable):
                self._holder.broker.send(reply, _ACK)

    def _settle(self, answer: bytes) -> None:
        # First of all: a renewal that follows a nak would undo its delay.
        self.let_go()
        if self.is_current:
            # Where the connection breaks, the delivery comes back, and whoever gets it learns how far its job is.
            with contextlib.suppress(BrokerUnavailable):
                self._holder.broker.send(self.reply, answer)
