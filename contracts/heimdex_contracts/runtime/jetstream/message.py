"""Parses the metadata of a delivered message from the reply subject that settles the delivery."""

from typing import NamedTuple


class Metadata(NamedTuple):
    """Metadata of a delivered message.

    sequence: its sequence in the stream. stored_ns: when it was stored, in nanoseconds since 1970. num_delivered: the
    number of this delivery, from 1.
    """

    stream: str
    sequence: int
    stored_ns: int
    num_delivered: int


def metadata_of(reply: str) -> Metadata | None:
    """Parse the reply subject of a delivery. Returns None for any other subject.

    The subject is `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`, or has a
    domain and an account hash after `$JS.ACK` (nats-server ADR-15).
    """
    tokens = reply.split(".")
    if len(tokens) < 9 or tokens[0] != "$JS" or tokens[1] != "ACK":
        return None
    at = 2 if len(tokens) == 9 else 4
    try:
        return Metadata(tokens[at], int(tokens[at + 3]), int(tokens[at + 5]), int(tokens[at + 2]))
    except (ValueError, IndexError):
        return None
