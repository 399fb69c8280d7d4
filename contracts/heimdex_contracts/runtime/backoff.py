"""The loop of code that waits for something: it runs once immediately, and again after growing delays."""

import asyncio
from collections.abc import AsyncIterator


async def repeat(first_seconds: float, max_seconds: float, until: float | None = None) -> AsyncIterator[None]:
    """Yield once immediately, and once after each delay. The delay doubles from `first_seconds` up to `max_seconds`.

    until: the event-loop time after which the loop ends; None: no limit. It yields at least once.
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
