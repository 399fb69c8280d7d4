"""The loop that everything here that waits for something repeats: at once, then after growing delays."""

import asyncio
from collections.abc import AsyncIterator


async def attempts(first_seconds: float, max_seconds: float, until: float | None = None) -> AsyncIterator[None]:
    """One iteration at once, and one after each delay; the delays double, from `first_seconds` to `max_seconds`.

    until: event-loop time after which none begins. There is always a first one.
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
