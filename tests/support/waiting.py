"""Waits for conditions with a deadline: no test sleeps and hopes."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

_T = TypeVar("_T")

#: Generous: only a failing test waits this long.
PATIENCE_SECONDS = 40.0


async def eventually(
    condition: Callable[[], _T | Awaitable[_T]],
    timeout: float = PATIENCE_SECONDS,
    what: str | Callable[[], Any] = "",
) -> _T:
    """The condition's first truthy result; sync or async. An AssertionError raised by it counts as "not yet".

    what: said when the time is up, or called for what to say then.
    """
    deadline = time.monotonic() + timeout
    pause = 0.01
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
            said = what() if callable(what) else what
            name = said or getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"not within {timeout:g} s: {name}; the last try gave {value!r}") from problem
        await asyncio.sleep(pause)
        pause = min(0.1, pause * 1.5)


async def never(condition: Callable[[], _T | Awaitable[_T]], seconds: float, what: str = "") -> None:
    """The condition stays falsy for this long. Only for what a correct system must not do, however slow it is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        assert not value, f"{what or condition}: {value!r}"
        await asyncio.sleep(0.02)
