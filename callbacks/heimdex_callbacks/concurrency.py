"""Shares a gateway's calls among receivers and tenants; what is too much for one of them waits in the stream.

A receiver is called a few times at once, and a tenant has at most half of what the others leave free, with however many
receivers. So one that lets every call run into its time-out, with thousands of callbacks due, does not take the places
of the others; and what waits for it does so with JetStream, not here.
"""

import random
from typing import Final

import msgspec

#: Calls that one gateway makes at the same time, to all receivers together.
MAX_AT_ONCE: Final = 256
#: To one receiver.
AT_ONCE: Final = 16
#: What comes too early is asked to come again after at most this long.
MAX_WAIT_SECONDS: Final = 60.0
#: Of how long a call takes before any has ended, in seconds.
_GUESS: Final = 0.2
_SHORTEST_WAIT_SECONDS: Final = 0.05


class _Calls(msgspec.Struct):
    """running: now; seconds: how long one takes, of late; until: event-loop time when all that wait have had a turn."""

    running: int = 0
    seconds: float = _GUESS
    until: float = 0.0

    def wait(self, at_once: int, now: float) -> float:
        """For how many seconds one call more has to wait."""
        self.until = max(self.until, now) + self.seconds / at_once
        wait = min(MAX_WAIT_SECONDS, self.until - now)
        return max(_SHORTEST_WAIT_SECONDS, wait) * random.uniform(1.0, 1.2)  # noqa: S311  # no secret


class ReceiverSlots:
    """Of one gateway. `now` is always the event loop's time."""

    def __init__(self, at_once: int = AT_ONCE, in_all: int = MAX_AT_ONCE) -> None:
        self._at_once = at_once
        self._in_all = in_all
        self._running = 0
        self._receivers: dict[str, _Calls] = {}
        self._tenants: dict[str, _Calls] = {}

    def enter(self, receiver: str, tenant: str, now: float) -> float | None:
        """None: call it, and `leave` afterwards. Otherwise: in how many seconds to ask again."""
        calls = self._receivers.setdefault(receiver, _Calls())
        theirs = self._tenants.setdefault(tenant, _Calls())
        if calls.running >= self._at_once:
            return calls.wait(self._at_once, now)
        free = self._in_all - (self._running - theirs.running)
        share = max(1, free // 2)
        if theirs.running >= share:
            return theirs.wait(share, now)
        for each in (calls, theirs):
            each.running += 1
        self._running += 1
        return None

    def leave(self, receiver: str, tenant: str, took_seconds: float, now: float) -> None:
        """One call has ended."""
        self._running -= 1
        for all_calls, name in ((self._receivers, receiver), (self._tenants, tenant)):
            calls = all_calls[name]
            calls.running -= 1
            calls.seconds += (took_seconds - calls.seconds) / 8
            if not calls.running and calls.until <= now:
                del all_calls[name]
