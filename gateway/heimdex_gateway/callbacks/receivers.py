"""Shares a gateway among receivers: each is called a few times at once; what is too much for it waits in the stream.

So a receiver that lets every call run into its time-out, with thousands of callbacks due, does not take the places of
the others; and what waits for it does so with JetStream, not here.
"""

import random
from typing import Final

import msgspec

AT_ONCE: Final = 16
#: What comes too early is asked to come again after at most this long.
LONGEST_WAIT_SECONDS: Final = 60.0
#: Of how long a call takes before any has ended, in seconds.
_GUESS: Final = 0.2
_SHORTEST_WAIT_SECONDS: Final = 0.05


class _Calls(msgspec.Struct):
    """running: now; seconds: how long one takes, of late; until: event-loop time when all that wait have had a turn."""

    running: int = 0
    seconds: float = _GUESS
    until: float = 0.0


class Receivers:
    """Of one gateway. `now` is always the event loop's time."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._calls: dict[str, _Calls] = {}

    def enter(self, receiver: str, now: float) -> float | None:
        """None: call it, and `leave` afterwards. Otherwise: in how many seconds to ask again."""
        calls = self._calls.setdefault(receiver, _Calls())
        if calls.running < self._at_once:
            calls.running += 1
            return None
        calls.until = max(calls.until, now) + calls.seconds / self._at_once
        wait = min(LONGEST_WAIT_SECONDS, calls.until - now)
        return max(_SHORTEST_WAIT_SECONDS, wait) * random.uniform(1.0, 1.2)  # noqa: S311  # no secret

    def leave(self, receiver: str, took_seconds: float, now: float) -> None:
        """One call has ended."""
        calls = self._calls[receiver]
        calls.running -= 1
        calls.seconds += (took_seconds - calls.seconds) / 8
        if not calls.running and calls.until <= now:
            del self._calls[receiver]
