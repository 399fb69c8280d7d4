"""A job type of one stage that sleeps 50 ms: for measuring how throughput grows with workers (scenarios/scaling.py)."""

import asyncio

from heimdex_contracts.pipelines import Pipeline, Stage

SECONDS = 0.05

PIPELINES = (
    Pipeline(type="sleeping", stages=(Stage("sleeping", expected_seconds=SECONDS, code="bench.support.sleeping:run"),)),
)


async def run(_: object) -> None:
    """Sleep."""
    await asyncio.sleep(SECONDS)
