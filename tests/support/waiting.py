"""Waits for conditions with a deadline, so that no test relies on a sleep of a fixed length."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

_T = TypeVar("_T")

#: The default timeout. It is long because only a failing test waits for it.
PATIENCE_SECONDS = 40.0


async def eventually(
    condition: Callable[[], _T | Awaitable[_T]],
    timeout: float = PATIENCE_SECONDS,
    what: str | Callable[[], Any] = "",
) -> _T:
    """Wait until the condition, which may be async, returns a truthy value, and return that value.

    An AssertionError of the condition counts as "not yet". Raises AssertionError after `timeout` seconds.

    what: what was expected, for the message of that error; or a function that returns it at that time.
    """
    deadline = time.monotonic() + timeout
    delay = 0.01
    while True:
        problem: AssertionError | None = None
        value: Any = None
        try:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
        except AssertionError as error:
            problem = error
        if time.monotonic() > deadline:
            expectation = what() if callable(what) else what
            name = expectation or getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"not within {timeout:g} s: {name}; the last value was {value!r}") from problem
        await asyncio.sleep(delay)
        delay = min(0.1, delay * 1.5)


async def never(condition: Callable[[], _T | Awaitable[_T]], seconds: float, what: str = "") -> None:
    """Raise AssertionError when the condition becomes truthy within this many seconds.

    Only for what a correct system must not do, however slow the machine is.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        assert not value, f"{what or condition}: {value!r}"
        await asyncio.sleep(0.02)
