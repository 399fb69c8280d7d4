"""Counts Ctrl-C, SIGTERM and the closing of the terminal, for run.py and demo.py, which check between their steps."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequests:
    """A context manager for the main thread. While it is open, SIGINT, SIGTERM and SIGHUP are only counted.

    The first signal requests an orderly shutdown, the second an immediate one. The third exits this process at once;
    the watchdog then ends the child processes.
    """

    def __init__(self) -> None:
        # A plain number: setting a threading.Event in a handler can deadlock with a wait on it.
        self._count = 0
        self._previous: dict[int, Any] = {}

    def stop(self) -> bool:
        """Whether a shutdown was requested."""
        return self._count >= 1

    def hurry(self) -> bool:
        """Whether an immediate shutdown was requested: the remaining processes are killed without a wait."""
        return self._count >= 2

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count >= 3:
            os._exit(128 + number)
