"""The retry loop of everything that waits for something: the first attempt at once, the others after growing delays."""

import asyncio
from collections.abc import AsyncIterator


async def attempts(first_seconds: float, max_seconds: float, until: float | None = None) -> AsyncIterator[None]:
    """Yield once at once, and once after each delay. The delay doubles from `first_seconds` up to `max_seconds`.

    until: the event-loop time after which no attempt begins; None: never. There is always a first attempt.
    """
    loop = asyncio.get_running_loop()
    delay = first_seconds
    while True:
        yield
        left = delay if until is None else min(delay, until - loop.time())
        if left <= 0:
            return
        await asyncio.sleep(left)
        delay = min(max_seconds, delay * 2)
