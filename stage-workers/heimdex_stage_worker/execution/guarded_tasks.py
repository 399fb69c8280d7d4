"""Creates the tasks of an event loop so that those of a stage cannot end it.

asyncio stops the loop when a task raises SystemExit or KeyboardInterrupt. For a task that a stage creates, the error
belongs to its attempt: the attempt fails, whether the stage awaits the task or not.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from heimdex.attempt_state import AttemptState
from heimdex_contracts.exception_text import describe
from heimdex_stage_worker.execution.attempt import Attempt
from heimdex_stage_worker.execution.current_attempt import CURRENT


def create_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any], **options: Any
) -> asyncio.Task[Any]:
    """Create a task. The signature is that of a task factory, see `loop.set_task_factory`."""
    attempt = CURRENT.get()
    if attempt is not None and isinstance(coro, Coroutine):
        coro = GuardedCoroutine(coro, attempt)
    return asyncio.Task(coro, loop=loop, **options)


class GuardedCoroutine(Coroutine[Any, Any, Any]):
    """A coroutine that turns SystemExit and KeyboardInterrupt into an error of its attempt.

    Everything else is as in the coroutine itself: a wrapping coroutine would leave it unawaited, with a warning, when
    its task is cancelled before it starts.
    """

    __slots__ = ("_attempt", "_coro")

    def __init__(self, coro: Coroutine[Any, Any, Any], attempt: Attempt) -> None:
        self._coro = coro
        self._attempt = attempt

    @property
    def state(self) -> AttemptState:
        """What the worker knows of the attempt."""
        return self._attempt.state

    def send(self, value: Any) -> Any:
        """Resume the coroutine."""
        return self._guard(self._coro.send, value)

    def throw(self, *error: Any) -> Any:
        """Raise an error in the coroutine."""
        return self._guard(self._coro.throw, *error)

    def close(self) -> None:
        """Close the coroutine."""
        self._coro.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coro.__await__()

    def __getattr__(self, name: str) -> Any:
        # asyncio shows a task by the frame and the name of its coroutine.
        return getattr(self._coro, name)

    def _guard(self, step: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return step(*arguments)
        except (SystemExit, KeyboardInterrupt) as error:
            self._attempt.fail(error)
            raise RuntimeError(f"the stage tried to end its worker: {describe(error)}") from error
