"""How much a receiver may send in one try: before its answer, in it, and in the TLS below. Pure.

An HTTP client reads on for as long as what comes is not the end: `100 Continue` again and again, one more header,
chunks of one byte. It understands them on the event loop, which the API shares. So each try has so many bytes, and so
many events, each of which costs about the same time: a piece that is read, a line, and a blank that follows a blank
(h11 may look at a row of n blanks n * n times).
"""

import re
from itertools import islice
from typing import Final

import msgspec

from heimdex_contracts.errors import HeimdexError

#: Of what comes over the connection, TLS included. An answer's head has some hundred bytes, a chain of certificates a
#: few thousand. A gateway takes as much for the head of a request.
MAX_BYTES: Final = 32 * 1024
#: A head of eighty lines that come one by one over TLS has 240.
MAX_EVENTS: Final = 256
#: So many are understood before the event loop goes round: some tenths of a millisecond.
MAX_EVENTS_AT_ONCE: Final = 32
#: More than most answers have: what follows is in no hurry.
TYPICAL_EVENTS: Final = 48
_EVENT: Final = re.compile(rb"\n|[ \t](?=[ \t])")


class Overspent(HeimdexError):
    """The receiver sent too much. The text is a sentence that says of what."""


class Budget(msgspec.Struct):
    """Of one try. What is left of it."""

    bytes_left: int = MAX_BYTES
    events_left: int = MAX_EVENTS

    @property
    def unusual(self) -> bool:
        """Whether the receiver has sent more than most do."""
        return self.events_left < MAX_EVENTS - TYPICAL_EVENTS

    def take(self, received: bytes) -> bytes:
        """Pay for the bytes that came over the connection: as many of them as are left. Raises Overspent for none."""
        if received and not self.bytes_left:
            raise Overspent(f"The receiver sent more than {MAX_BYTES // 1024} KiB before its answer was over.")
        taken = received[: self.bytes_left]
        self.bytes_left -= len(taken)
        return taken

    def piece(self) -> None:
        """Pay for a piece, whatever is in it. Raises Overspent."""
        # One is left for what is in it.
        if self.events_left < 2:
            what = f"{MAX_EVENTS} pieces, lines and repeated blanks"
            raise Overspent(f"The receiver sent more than {what} before its answer was over.")
        self.events_left -= 1

    def split(self, piece: bytes) -> tuple[bytes, bytes]:
        """Pay for as much of a piece as can be understood at once: that, and what is left. Raises Overspent.

        What was paid for counts, also where the rest is too much: an answer whose head is in it is one.
        """
        self.piece()
        most = min(self.events_left, MAX_EVENTS_AT_ONCE)
        ends = [event.end() for event in islice(_EVENT.finditer(piece), most)]
        self.events_left -= len(ends)
        end = ends[-1] if len(ends) == most else len(piece)
        return piece[:end], piece[end:]
