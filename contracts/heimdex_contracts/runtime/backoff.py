"""The loop of code that waits for something: it runs once immediately, and again after growing delays."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final, Self

RESOLUTION_SECONDS: Final = 0.001


def repeat(
    first_seconds: float, max_seconds: float, until: float | None = None, stop: asyncio.Event | None = None
) -> AsyncIterator[None]:
    """Yield once immediately, and once after each delay. The delay doubles from `first_seconds` up to `max_seconds`.

    until: the event-loop time after which the loop ends; None: no limit. stop: an event that ends the loop; if it
    interrupts a delay, the loop yields once more. The loop yields at least once, whatever `until` and `stop` are.
    """
    return _Repetition(first_seconds, max_seconds, until, stop)


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait until the event is set, for `seconds` at most. Returns whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()


class _Repetition:
    """The iterator of `repeat`. A generator would need a task to be closed after each loop that is left early."""

    def __init__(
        self, first_seconds: float, max_seconds: float, until: float | None, stop: asyncio.Event | None
    ) -> None:
        self._next_seconds = first_seconds
        self._max_seconds = max_seconds
        self._until = until
        self._stop = stop
        self._begun = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> None:
        if not self._begun:
            self._begun = True
            return
        delay = self._next_seconds
        if self._until is not None:
            left = self._until - asyncio.get_running_loop().time()
            # uvloop's timers and clock have a resolution of a millisecond: the loop would spin through the last one.
            delay = 0 if left < RESOLUTION_SECONDS else min(delay, left)
        if delay <= 0 or (self._stop is not None and self._stop.is_set()):
            raise StopAsyncIteration
        if self._stop is None:
            await asyncio.sleep(delay)
        else:
            await set_within(self._stop, delay)
        self._next_seconds = min(self._max_seconds, self._next_seconds * 2)
