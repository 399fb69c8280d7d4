"""Counts the blocking functions that go on although their attempts are over, each in a thread that nobody can end.

A few cost the others nothing but their share of the interpreter. When there are as many as a worker may have jobs,
something is wrong that only a new process mends.
"""

import asyncio
from concurrent.futures import Future
from typing import Any, Final

from heimdex_contracts.runtime.logs import Logger
from heimdex_stage_worker.context import StageContext

#: A function that reports now and then ends by itself soon after it was interrupted.
ENDS_WITHIN_SECONDS: Final = 5.0


class StuckFunctions:
    """Those of one worker. most: how many there may be; from then on `too_many` is set."""

    def __init__(self, most: int, log: Logger) -> None:
        self.too_many = asyncio.Event()
        self._most = most
        self._log = log
        self._functions: list[Future[Any]] = []

    def watch(self, function: Future[Any], ctx: StageContext) -> None:
        """The attempt is over and its function goes on: it counts if it still does after some seconds."""
        asyncio.get_running_loop().call_later(ENDS_WITHIN_SECONDS, self._look, function, ctx)

    def _look(self, function: Future[Any], ctx: StageContext) -> None:
        if function.done():
            return
        self._functions = [other for other in self._functions if not other.done()]
        self._functions.append(function)
        self._log.warning(
            "thread_abandoned",
            job_id=ctx.job_id,
            attempt=ctx.attempt,
            abandoned=len(self._functions),
            message="the stage's function goes on although its attempt is over; its thread cannot be ended",
        )
        if len(self._functions) >= self._most and not self.too_many.is_set():
            self._log.error(
                "too_many_threads_abandoned",
                abandoned=len(self._functions),
                message="too many functions never returned: ending, to be started anew; does the stage report?",
            )
            self.too_many.set()
