"""Runs a stage's function once, and maps every way in which it can end to an outcome."""

import asyncio
import importlib
import inspect
import time
from concurrent.futures import Future
from functools import partial
from typing import Any, cast

from heimdex_contracts.errors import SettingsError
from heimdex_contracts.settlement import Errored, Finished, Interrupted, Outcome, Superseded
from heimdex_stage_worker.context import PermanentError, StageContext, StageFunction, StageInterrupted
from heimdex_stage_worker.execution.threads import Threads

#: Longer error texts are truncated to this many characters: they are for people.
MAX_ERROR_LENGTH = 2000
#: The time that a cancelled function has to clean up.
SWALLOWED_SECONDS = 1.0


def load_stage(code: str) -> StageFunction:
    """Import the function that `package.module:function` names. Raises SettingsError when that is not possible."""
    module, _, name = code.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise SettingsError(f"The stage's code {code!r} cannot be imported: {error}.") from error
    if not callable(function):
        raise SettingsError(f"The stage's code {code!r} is not a function.")
    return cast("StageFunction", function)


class Attempt:
    """One attempt of a stage, which can be stopped: it calls the stage's function once.

    timeout_seconds: the limit for the function, counted from its call; None: no limit.
    """

    def __init__(
        self,
        function: StageFunction,
        ctx: StageContext,
        timeout_seconds: float | None,
        threads: Threads,
    ) -> None:
        self._function = function
        self._ctx = ctx
        self._timeout = timeout_seconds
        self._threads = threads
        self._ended_by: Outcome | None = None
        self._task: asyncio.Future[Any] | None = None
        self._blocking: Future[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: Resolved when the function has ended, or when the attempt must end.
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def interrupt(self) -> None:
        """End the attempt because the worker is stopping. Its outcome is Interrupted, unless it has already ended."""
        self._end(Interrupted())

    def supersede(self) -> None:
        """End the attempt because the job was canceled. Its outcome is Superseded, unless it has already ended."""
        self._end(Superseded())

    @property
    def goes_on(self) -> Future[Any] | None:
        """The blocking function while it runs. A thread cannot be stopped, so it may outlive the attempt."""
        return self._blocking if self._blocking is not None and self._blocking.running() else None

    async def run(self) -> Outcome:
        """Run the attempt and return its outcome. Never raises an error of the stage."""
        if self._ended_by is not None:
            return self._ended_by
        if self._ctx.fail_at_stage == self._ctx.stage:
            return Errored(f"fail_at_stage asked this job to fail at {self._ctx.stage}")
        self._task = asyncio.get_running_loop().create_task(self._call())
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
        if self._ended_by is not None:
            return self._ended_by
        return _outcome(self._task)

    async def _call(self) -> None:
        try:
            if inspect.iscoroutinefunction(self._function):
                self._called(time.monotonic())
                await self._function(self._ctx)
                return
            self._blocking = self._threads.submit(partial(self._call_blocking, asyncio.get_running_loop()))
            result = await asyncio.wrap_future(self._blocking)
            if inspect.isawaitable(result):
                await result
        except StageInterrupted:
            return  # the outcome is that of the interruption
        except (SystemExit, KeyboardInterrupt) as error:
            raise RuntimeError(f"the stage tried to end its worker: {error!r}") from error

    def _call_blocking(self, loop: asyncio.AbstractEventLoop) -> Any:
        """Call the function. Runs in a thread of its own."""
        if self._timeout is not None:
            loop.call_soon_threadsafe(self._called, time.monotonic())
        try:
            return self._function(self._ctx)
        except StageInterrupted:
            return None
        except (SystemExit, KeyboardInterrupt) as error:
            # Must not reach the future: asyncio would stop the event loop.
            raise RuntimeError(f"the stage tried to end its worker: {error!r}") from error
        except StopIteration as error:
            # Futures do not accept it: asyncio's would never be done. In an async function, Python itself converts it
            # to a RuntimeError.
            raise RuntimeError(f"the stage raised {error!r}: next() on an exhausted iterator") from error

    def _called(self, at: float) -> None:
        """Start the time-out at the function's call. `at`: the time of the call by `time.monotonic`."""
        if self._timeout is not None and not self._over.done():
            left = at + self._timeout - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(max(0.0, left), self._time_out)

    def _end(self, outcome: Outcome) -> None:
        if self._ended_by is None and not (self._task and self._task.done()):
            self._ended_by = outcome
            self._ctx.interrupt()
            if self._task:
                self._task.cancel()
            self._set_over()

    def _time_out(self) -> None:
        self._end(Errored(f"the stage took longer than its time-out of {self._timeout or 0:g} s"))

    def _set_over(self, ended: asyncio.Future[Any] | None = None) -> None:
        if ended is not None and not ended.cancelled():
            ended.exception()  # retrieved, so that asyncio does not log an error after the attempt is over
        if not self._over.done():
            self._over.set_result(None)


def _outcome(task: asyncio.Future[Any]) -> Outcome:
    if task.cancelled():
        return Errored("the stage cancelled itself")
    error = task.exception()
    match error:
        case None:
            return Finished()
        case PermanentError():
            return Errored(_text(error), permanent=True)
        case _:
            return Errored(_text(error))


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:  # an error's own __str__ may raise anything
        text = "the text of this error is not available"
    text = text.encode(errors="replace").decode().replace("\x00", "�")[:MAX_ERROR_LENGTH]
    return text if isinstance(error, PermanentError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
