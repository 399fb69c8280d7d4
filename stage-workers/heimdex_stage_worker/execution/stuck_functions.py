"""Counts the blocking functions that still run although their attempts are over, in threads that cannot be stopped.

A few of them cost other jobs only a share of the interpreter. When there are as many as the worker may hold jobs, only
a restart of the process helps.
"""

import asyncio
from concurrent.futures import Future
from typing import Any, Final

from heimdex_contracts.runtime.logs import Logger
from heimdex_stage_worker.context import StageContext

#: A function that still runs this long after its attempt counts as stuck. One that reports regularly ends sooner.
ENDS_WITHIN_SECONDS: Final = 5.0


class StuckFunctions:
    """The stuck functions of one worker. most: the number of stuck functions at which `too_many` is set."""

    def __init__(self, most: int, log: Logger) -> None:
        self.too_many = asyncio.Event()
        self._most = most
        self._log = log
        self._functions: list[Future[Any]] = []

    def watch(self, function: Future[Any], ctx: StageContext) -> None:
        """Count the function as stuck if it still runs after ENDS_WITHIN_SECONDS. Its attempt is over."""
        asyncio.get_running_loop().call_later(ENDS_WITHIN_SECONDS, self._check, function, ctx)

    def _check(self, function: Future[Any], ctx: StageContext) -> None:
        if function.done():
            return
        self._functions = [other for other in self._functions if not other.done()]
        self._functions.append(function)
        self._log.warning(
            "thread_abandoned",
            job_id=ctx.job_id,
            attempt=ctx.attempt,
            abandoned=len(self._functions),
            message="the stage's function still runs although its attempt is over; its thread cannot be stopped",
        )
        if len(self._functions) >= self._most and not self.too_many.is_set():
            self._log.error(
                "too_many_threads_abandoned",
                abandoned=len(self._functions),
                message="too many functions did not return: the process exits to be restarted; the stage should report",
            )
            self.too_many.set()
