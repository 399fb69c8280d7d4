"""A job type of one stage that sleeps 50 ms; scenarios/scaling.py measures with it the throughput by workers."""

import asyncio

from heimdex import Pipeline, Stage

SECONDS = 0.05

PIPELINES = (
    Pipeline(type="sleeping", stages=(Stage("sleeping", expected_seconds=SECONDS, code="bench.support.sleeping:run"),)),
)


async def run() -> None:
    """Sleep 50 ms, without using CPU or a thread."""
    await asyncio.sleep(SECONDS)
