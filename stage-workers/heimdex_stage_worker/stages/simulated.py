"""The work of the mock stages: they sleep for the time that the pipeline expects, and report their progress."""

import asyncio
import time
from typing import Final

from heimdex import Context

STEP_SECONDS: Final = 0.1


async def pretend(ctx: Context) -> None:
    """Sleep for `expected_seconds` times the mock time scale, and report the progress every 0.1 s."""
    seconds = ctx.expected_seconds * ctx.mock_time_scale
    start = time.monotonic()
    while (left := start + seconds - time.monotonic()) > 0:
        await asyncio.sleep(min(STEP_SECONDS, left))
        ctx.report((time.monotonic() - start) / seconds)
