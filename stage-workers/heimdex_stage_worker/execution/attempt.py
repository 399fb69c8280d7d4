"""Runs a stage's function once, and maps every way in which it can end to an outcome."""

import asyncio
import contextlib
import inspect
import os
import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, NamedTuple

from heimdex import Context, StageInterrupted
from heimdex.attempt_state import AttemptState
from heimdex.binding import ArgumentRefused, BoundFunction
from heimdex_contracts.exception_text import describe, text_of
from heimdex_contracts.outputs import OutputRefused
from heimdex_contracts.runtime import forks, logs
from heimdex_contracts.runtime.logs import Logger
from heimdex_contracts.settlement import Errored, Finished, Interrupted, Outcome, Superseded
from heimdex_stage_worker.execution import failures
from heimdex_stage_worker.execution.commands import Commands
from heimdex_stage_worker.execution.current_attempt import CURRENT
from heimdex_stage_worker.execution.threads import Threads

#: The time that a cancelled function has to clean up.
SWALLOWED_SECONDS: Final = 1.0

#: Results whose code has not run, and runs only if somebody iterates over them.
_LAZY: Final = (map, filter)


class Returned(NamedTuple):
    """An awaitable that a blocking function returned. Anything else that ends it is an Outcome instead."""

    value: Any


class Attempt:
    """One attempt of a stage, which can be stopped: it calls the stage's function once.

    timeout_seconds: the limit for the function, counted from its call; None: no limit. log: the logger for the standard
    error of its commands.
    """

    def __init__(
        self,
        function: BoundFunction,
        state: AttemptState,
        timeout_seconds: float | None,
        threads: Threads,
        log: Logger | None = None,
    ) -> None:
        self._function = function
        self._state = state
        self._commands = Commands(state, threads, log)
        self._ctx = Context(state, self._commands.run)
        self._timeout = timeout_seconds
        self._threads = threads
        self._ended_by: Outcome | None = None
        self._task: asyncio.Task[Outcome] | None = None
        self._blocking: Future[Returned | Outcome] | None = None
        #: The identifier of the thread that runs the blocking function.
        self._thread: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: Resolved when the function has ended, or when the attempt must end.
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def interrupt(self) -> None:
        """End the attempt because the worker is stopping. Its outcome is Interrupted, unless it has already ended."""
        self._end(Interrupted())

    def supersede(self) -> None:
        """End the attempt because the job was canceled. Its outcome is Superseded, unless it has already ended."""
        self._end(Superseded())

    def fail(self, error: BaseException) -> None:
        """End the attempt with this error, which something outside the function's own call raised for it.

        Its outcome is Errored, unless it has already ended. Must be called on the event loop.
        """
        self._end(_failure(error))

    @property
    def state(self) -> AttemptState:
        """What the worker knows of this attempt."""
        return self._state

    @property
    def goes_on(self) -> Future[Any] | asyncio.Task[Any] | None:
        """The function while it runs on although its attempt is over.

        A thread cannot be stopped; a task is one that ignores its cancellation.
        """
        if self._blocking is not None and self._blocking.running():
            return self._blocking
        return self._task if self._task is not None and not self._task.done() else None

    async def run(self) -> Outcome:
        """Run the attempt and return its outcome. Never raises an error of the stage."""
        if self._ended_by is not None:
            return self._ended_by
        if self._state.fail_at_stage == self._state.stage:
            return Errored(f"fail_at_stage asked this job to fail at {self._state.stage}")
        # Past the task factory, which is for the tasks that the stage creates (see `guarded_tasks`).
        self._task = asyncio.Task(self._call(), loop=asyncio.get_running_loop())
        self._task.add_done_callback(self._set_over)
        try:
            # One future covers all ways to end. This is cheaper than asyncio.wait for the task and the other events.
            await self._over
        finally:
            if self._timer:
                self._timer.cancel()
        if not self._task.done():
            # A function that ignores its cancellation must not keep its slot for ever.
            await asyncio.wait({self._task}, timeout=SWALLOWED_SECONDS)
        self._commands.terminate()
        if self._commands.running:
            await self._commands.end()
        if self._ended_by is not None:
            return self._ended_by
        if self._task.cancelled():
            return Errored("the stage cancelled itself")
        error = self._task.exception()
        return self._task.result() if error is None else failures.errored(error)

    async def _call(self) -> Outcome:
        CURRENT.set(self)
        state = self._state
        pid = os.getpid()
        with logs.bound(job_id=state.job_id, stage=state.stage, attempt=state.attempt):
            try:
                if self._function.is_async:
                    self._called(time.monotonic())
                    arguments = self._function.arguments(self._ctx, state)
                    result = await self._function.function(*arguments.positional, **arguments.keywords)
                    forks.end_if_forked(pid)
                else:
                    loop = asyncio.get_running_loop()
                    self._blocking = self._threads.submit(partial(self._call_blocking, loop))
                    outcome = await asyncio.wrap_future(self._blocking)
                    if not isinstance(outcome, Returned):
                        return outcome
                    result = await outcome.value
                return self._outcome_of(result)
            except BaseException as error:
                forks.end_if_forked(pid, error)
                if self._ended_by is not None and isinstance(error, asyncio.CancelledError):
                    raise
                return _failure(error)

    def _call_blocking(self, loop: asyncio.AbstractEventLoop) -> Returned | Outcome:
        """Call the function. Runs in a thread of its own."""
        self._thread = threading.get_ident()
        if self._timeout is not None:
            loop.call_soon_threadsafe(self._called, time.monotonic())
        pid = os.getpid()
        try:
            arguments = self._function.arguments(self._ctx, self._state)
            value = self._function.function(*arguments.positional, **arguments.keywords)
            forks.end_if_forked(pid)
            return Returned(value) if inspect.isawaitable(value) else self._outcome_of(value)
        except BaseException as error:
            forks.end_if_forked(pid, error)
            # Nothing else may reach the future: asyncio would stop the loop for a SystemExit, and futures do not take
            # a StopIteration. An error's own __str__ takes its time here and not on the event loop.
            return _failure(error)

    def _outcome_of(self, result: Any) -> Outcome:
        """Return the outcome of the function's call, which returned this."""
        return _lazy(result) or Finished(self._function.encoded(result, self._state))

    def _called(self, at: float) -> None:
        """Start the time-out at the function's call. `at`: the time of the call by `time.monotonic`."""
        if self._timeout is not None and not self._over.done():
            left = at + self._timeout - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(max(0.0, left), self._time_out)

    def _end(self, outcome: Outcome) -> None:
        if self._ended_by is None and not (self._task and self._task.done()):
            self._ended_by = outcome
            self._state.interrupt()
            self._commands.terminate()
            if self._task:
                self._task.cancel()
            self._set_over()

    def _time_out(self) -> None:
        text = f"the stage took longer than its time-out of {self._timeout or 0:g} s"
        self._end(Errored(text, traceback=self._stack()))

    def _stack(self) -> str | None:
        """Return where the function is now."""
        if self._thread is not None and self._blocking is not None and self._blocking.running():
            return failures.stack_of_thread(self._thread, __file__)
        return failures.stack_of_task(self._task, __file__) if self._task else None

    def _set_over(self, ended: asyncio.Future[Any] | None = None) -> None:
        if ended is not None and not ended.cancelled():
            ended.exception()  # retrieved, so that asyncio does not log an error after the attempt is over
        if not self._over.done():
            self._over.set_result(None)


def _failure(error: BaseException) -> Errored:
    """Return the outcome of an attempt whose function raised this."""
    traceback = failures.traceback_of(error, __file__)
    kind = type(error)
    if issubclass(kind, ArgumentRefused | OutputRefused):
        return Errored(text_of(error))  # its text says it all
    if issubclass(kind, StageInterrupted):
        return Errored("the stage raised StageInterrupted although nobody interrupted it", traceback=traceback)
    if issubclass(kind, asyncio.CancelledError):
        return Errored("the stage cancelled itself", traceback=traceback)
    if issubclass(kind, SystemExit | KeyboardInterrupt):
        return Errored(f"the stage tried to end its worker: {describe(error)}", traceback=traceback)
    if issubclass(kind, StopIteration):
        return Errored(f"the stage raised {describe(error)}: next() on an exhausted iterator", traceback=traceback)
    return failures.errored(error, __file__)


def _lazy(result: Any) -> Errored | None:
    """Return the error of an attempt whose function returned code that has not run; None for any other result."""
    if result is None:
        return None
    if inspect.isgenerator(result):
        kind = "a generator"
    elif inspect.isasyncgen(result):
        kind = "an async generator"
    elif isinstance(result, _LAZY):
        kind = f"a {type(result).__name__} object"
    elif inspect.isawaitable(result):
        kind = "an awaitable that nobody awaits"
    else:
        return None
    end = getattr(result, "close", None) or getattr(result, "cancel", None)
    if end is not None:
        # Python warns of a coroutine that was never awaited, and a task would run on.
        with contextlib.suppress(BaseException):
            end()
    return Errored(f"the stage returned {kind}: its code has not run")
