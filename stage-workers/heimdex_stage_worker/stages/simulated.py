"""How the mock stages pass their time: asleep for as long as the pipeline expects, telling how far they are."""

import asyncio
import time
from typing import Final

from heimdex_stage_worker.context import StageContext

STEP_SECONDS: Final = 0.1


async def pretend(ctx: StageContext) -> None:
    """Take `expected_seconds` times the mock time scale; report every tenth of a second."""
    seconds = ctx.expected_seconds * ctx.mock_time_scale
    start = time.monotonic()
    while (left := start + seconds - time.monotonic()) > 0:
        await asyncio.sleep(min(STEP_SECONDS, left))
        ctx.report((time.monotonic() - start) / seconds)
