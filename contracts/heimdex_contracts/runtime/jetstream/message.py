"""What the subject that settles a delivery says of its message."""

from typing import NamedTuple


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
