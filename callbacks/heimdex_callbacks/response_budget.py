"""Limits how much a receiver may send in one attempt: before its response, in it, and in the TLS layer below. Pure.

An HTTP client keeps reading until the response is complete: `100 Continue` again and again, one more header, chunks of
one byte. It parses all of this on the event loop, which the API shares. So each attempt has a budget of bytes and of
events. Each event takes about the same time to parse. An event is a piece that is read, a line, or a blank that follows
another blank (h11 may look at a sequence of n blanks n * n times).
"""

import re
from itertools import islice
from typing import Final

import msgspec

from heimdex_contracts.errors import HeimdexError

#: Bytes received over the connection, including TLS. A response head has a few hundred bytes, a certificate chain a few
#: thousand. The gateway accepts as many bytes for the head of a request.
MAX_BYTES: Final = 32 * 1024
#: A head of eighty lines that arrive one by one over TLS takes 240 events.
MAX_EVENTS: Final = 256
#: Events parsed before other tasks get the event loop: some tenths of a millisecond.
MAX_EVENTS_AT_ONCE: Final = 32
#: More events than most responses have. A receiver that sends more is read at a lower rate.
TYPICAL_EVENTS: Final = 48
_EVENT: Final = re.compile(rb"\n|[ \t](?=[ \t])")


class Overspent(HeimdexError):
    """The receiver exceeded its budget. The text is a sentence that names the limit."""


class Budget(msgspec.Struct):
    """The bytes and events that the receiver may still send in one attempt."""

    bytes_left: int = MAX_BYTES
    events_left: int = MAX_EVENTS

    @property
    def unusual(self) -> bool:
        """Whether the receiver has sent more than most receivers do."""
        return self.events_left < MAX_EVENTS - TYPICAL_EVENTS

    def take(self, received: bytes) -> bytes:
        """Charge received bytes and return as many of them as the budget allows.

        Raises Overspent if bytes were received and none were left.
        """
        if received and not self.bytes_left:
            raise Overspent(f"The receiver sent more than {MAX_BYTES // 1024} KiB before its response was complete.")
        taken = received[: self.bytes_left]
        self.bytes_left -= len(taken)
        return taken

    def piece(self) -> None:
        """Charge one event for a piece, whatever it contains. Raises Overspent."""
        # One event stays available for the content of the piece.
        if self.events_left < 2:
            limit = f"{MAX_EVENTS} pieces, lines and repeated blanks"
            raise Overspent(f"The receiver sent more than {limit} before its response was complete.")
        self.events_left -= 1

    def split(self, piece: bytes) -> tuple[bytes, bytes]:
        """Charge for as much of a piece as may be parsed at once. Returns that part, and the rest.

        Raises Overspent if no events are left. The parts returned before that remain valid: if they contain the head of
        a response, the response counts.
        """
        self.piece()
        most = min(self.events_left, MAX_EVENTS_AT_ONCE)
        ends = [event.end() for event in islice(_EVENT.finditer(piece), most)]
        self.events_left -= len(ends)
        end = ends[-1] if len(ends) == most else len(piece)
        return piece[:end], piece[end:]
