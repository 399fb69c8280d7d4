"""Concurrency limits for each receiver and each tenant; a callback over a limit waits in the stream.

A receiver gets at most a few concurrent calls. A tenant gets at most half of the calls that other tenants leave free,
however many receivers it has. A receiver that lets every call time out, with thousands of callbacks due, therefore
cannot use up the slots of the others. Its waiting callbacks stay in JetStream and use no memory in the gateway.
"""

import random
from typing import Final

import msgspec

#: Concurrent calls of one gateway, to all receivers together.
MAX_AT_ONCE: Final = 256
#: Concurrent calls of one gateway to one receiver.
AT_ONCE: Final = 16
#: The longest delay after which a callback that found no free slot is redelivered.
MAX_WAIT_SECONDS: Final = 60.0
#: The assumed duration of a call, in seconds, until the first call has finished.
_INITIAL_CALL_SECONDS: Final = 0.2
_SHORTEST_WAIT_SECONDS: Final = 0.05


class _Calls(msgspec.Struct):
    """The calls to one receiver or of one tenant.

    running: calls in progress; seconds: moving average of a call's duration; until: event-loop time by which every
    callback that waits is expected to have had its turn.
    """

    running: int = 0
    seconds: float = _INITIAL_CALL_SECONDS
    until: float = 0.0

    def wait(self, at_once: int, now: float) -> float:
        """Queue one more call and return the seconds that it has to wait."""
        self.until = max(self.until, now) + self.seconds / at_once
        wait = min(MAX_WAIT_SECONDS, self.until - now)
        return max(_SHORTEST_WAIT_SECONDS, wait) * random.uniform(1.0, 1.2)  # noqa: S311  # no secret


class ReceiverSlots:
    """Call slots of one gateway, counted by receiver and by tenant. `now` is always event-loop time."""

    def __init__(self, at_once: int = AT_ONCE, in_all: int = MAX_AT_ONCE) -> None:
        self._at_once = at_once
        self._in_all = in_all
        self._running = 0
        self._receivers: dict[str, _Calls] = {}
        self._tenants: dict[str, _Calls] = {}

    def enter(self, receiver: str, tenant: str, now: float) -> float | None:
        """Take a slot for one call.

        Returns None if the call may start; the caller then calls `leave` when it has finished. Otherwise returns the
        seconds after which to retry.
        """
        receiver_calls = self._receivers.setdefault(receiver, _Calls())
        tenant_calls = self._tenants.setdefault(tenant, _Calls())
        if receiver_calls.running >= self._at_once:
            return receiver_calls.wait(self._at_once, now)
        free = self._in_all - (self._running - tenant_calls.running)
        share = max(1, free // 2)
        if tenant_calls.running >= share:
            return tenant_calls.wait(share, now)
        for calls in (receiver_calls, tenant_calls):
            calls.running += 1
        self._running += 1
        return None

    def leave(self, receiver: str, tenant: str, took_seconds: float, now: float) -> None:
        """Free the slot of a finished call and update the average duration."""
        self._running -= 1
        for calls_by_name, name in ((self._receivers, receiver), (self._tenants, tenant)):
            calls = calls_by_name[name]
            calls.running -= 1
            calls.seconds += (took_seconds - calls.seconds) / 8
            if not calls.running and calls.until <= now:
                del calls_by_name[name]
