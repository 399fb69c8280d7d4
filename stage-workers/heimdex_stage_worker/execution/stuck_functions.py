"""Counts the functions that still run although their attempts are over.

A blocking function runs in a thread, which cannot be stopped; an async one may ignore its cancellation. A few of them
cost other jobs only a share of the interpreter. When there are as many as the worker may hold jobs, only a restart of
the process helps.
"""

import asyncio
from concurrent.futures import Future
from typing import Any, Final

from heimdex.attempt_state import AttemptState
from heimdex_contracts.runtime.logs import Logger

#: A function that still runs this long after its attempt counts as stuck. One that reports regularly ends sooner.
ENDS_WITHIN_SECONDS: Final = 5.0
#: The time that a task has to end after it was cancelled once more.
CANCELLED_AGAIN_SECONDS: Final = 1.0


class StuckFunctions:
    """The stuck functions of one worker. most: the number of stuck functions at which `too_many` is set.

    ends_within_seconds: as ENDS_WITHIN_SECONDS. cancelled_again_seconds: as CANCELLED_AGAIN_SECONDS.
    """

    def __init__(
        self,
        most: int,
        log: Logger,
        ends_within_seconds: float = ENDS_WITHIN_SECONDS,
        cancelled_again_seconds: float = CANCELLED_AGAIN_SECONDS,
    ) -> None:
        self._ends_within_seconds = ends_within_seconds
        self._cancelled_again_seconds = cancelled_again_seconds
        self.too_many = asyncio.Event()
        self._most = most
        self._log = log
        self._functions: list[Future[Any] | asyncio.Task[Any]] = []

    def watch(self, function: Future[Any] | asyncio.Task[Any], state: AttemptState) -> None:
        """Count the function as stuck if it still runs after `ends_within_seconds`. Its attempt is over."""
        loop = asyncio.get_running_loop()
        if isinstance(function, asyncio.Task):
            loop.call_later(self._ends_within_seconds, self._cancel_again, function, state)
        else:
            loop.call_later(self._ends_within_seconds, self._check, function, state)

    def _cancel_again(self, task: asyncio.Task[Any], state: AttemptState) -> None:
        """Cancel a task that may have caught only its first cancellation; by now, its clean-up should be over."""
        if task.cancel():
            asyncio.get_running_loop().call_later(self._cancelled_again_seconds, self._check, task, state)

    def _check(self, function: Future[Any] | asyncio.Task[Any], state: AttemptState) -> None:
        if function.done():
            return
        self._functions = [other for other in self._functions if not other.done()]
        self._functions.append(function)
        is_task = isinstance(function, asyncio.Task)
        self._log.warning(
            "task_abandoned" if is_task else "thread_abandoned",
            job_id=state.job_id,
            attempt=state.attempt,
            abandoned=len(self._functions),
            message="the stage's function still runs although its attempt is over; "
            + ("it ignores its cancellation" if is_task else "its thread cannot be stopped"),
        )
        if len(self._functions) >= self._most and not self.too_many.is_set():
            self._log.error(
                "too_many_threads_abandoned",
                abandoned=len(self._functions),
                message="too many functions did not return: the process exits to be restarted; the stage should report"
                " or let itself be cancelled",
            )
            self.too_many.set()
