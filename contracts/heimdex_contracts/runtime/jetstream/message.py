"""One delivery of a stream's message to a consumer: what came, and its place as the subject that answers it tells."""

from typing import NamedTuple

from heimdex_contracts.runtime.jetstream.client import headers_of


class Metadata(NamedTuple):
    """Where a delivered message lies: the stream and its sequence there, when it was stored (ns), which delivery."""

    stream: str
    sequence: int
    stored_ns: int
    num_delivered: int


def metadata_of(reply: str) -> Metadata | None:
    """From the subject that acknowledges a delivery; None for anything else.

    `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`, or the same after a domain
    and an account (nats-server ADR-15).
    """
    tokens = reply.split(".")
    if len(tokens) < 9 or tokens[0] != "$JS" or tokens[1] != "ACK":
        return None
    at = 2 if len(tokens) == 9 else 4
    try:
        return Metadata(tokens[at], int(tokens[at + 3]), int(tokens[at + 5]), int(tokens[at + 2]))
    except (ValueError, IndexError):
        return None


class Delivered:
    """A message as its consumer's owner gets it; `reply` is where it is acknowledged."""

    __slots__ = ("_block", "data", "place", "reply", "subject")

    def __init__(self, subject: str, reply: str, data: bytes, block: bytes, place: Metadata) -> None:
        self.subject = subject
        self.reply = reply
        self.data = data
        self.place = place
        self._block = block

    @property
    def headers(self) -> dict[str, str]:
        """Read when they are asked for: few ask."""
        return headers_of(self._block) if self._block else {}
