"""Indexes vectors. This is a mock: it takes the expected time and does nothing."""

from heimdex import Context
from heimdex_stage_worker.stages.simulated import pretend


async def run(ctx: Context) -> None:
    """Simulate the indexing."""
    await pretend(ctx)
