"""Extracts frames from a video (a mock: it takes the time and does nothing)."""

from heimdex_stage_worker.context import StageContext
from heimdex_stage_worker.stages.simulated import pretend


async def run(ctx: StageContext) -> None:
    """Pretend."""
    await pretend(ctx)
