"""Functions for attempts in a process of their own; `ctx.job_type` tells them what to do."""

import asyncio
from typing import NoReturn

from heimdex_stage_worker.context import StageContext


class OddError(BaseException):
    """No Exception, as a library's own may be."""


#: What is no Exception, or what Python itself listens for.
ODD: dict[str, type[BaseException]] = {
    error.__name__: error
    for error in (
        StopIteration,
        StopAsyncIteration,
        SystemExit,
        KeyboardInterrupt,
        asyncio.CancelledError,
        GeneratorExit,
        OddError,
    )
}


def raise_blocking(ctx: StageContext) -> NoReturn:
    raise ODD[ctx.job_type]("odd")


async def raise_async(ctx: StageContext) -> NoReturn:
    raise ODD[ctx.job_type]("odd")
