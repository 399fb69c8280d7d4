"""Runs an event loop that other people's code shares, and cannot end."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_to_end(
    loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, T], on_exit: Callable[[BaseException], None]
) -> T:
    """Run `main` on this loop until it ends, whatever other code on the loop does. Returns its result.

    A task or a callback of a stage that raises SystemExit or KeyboardInterrupt, or calls `loop.stop()`, stops the loop:
    `on_exit` is then called with the error, and the loop runs on. Raises what `main` raises; if that is SystemExit or
    KeyboardInterrupt, RuntimeError.
    """
    asyncio.set_event_loop(loop)
    task = loop.create_task(main)
    while not task.done():
        try:
            loop.run_until_complete(task)
        except BaseException as error:
            if loop.is_closed():
                raise
            if not task.done():
                on_exit(error)
    try:
        return task.result()
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"the service raised {error!r}") from error
