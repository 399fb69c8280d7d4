"""Turn Ctrl-C, SIGTERM and a closed terminal into a count that run.py and demo.py look at between their
steps.
"""

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequests:
    """A context manager, for the main thread: while it is open these signals only count.

    The first asks for an orderly end and the second for a quick one. The third ends this process at once; the
    watchdog then ends the children.
    """

    def __init__(self) -> None:
        # A plain number: setting a threading.Event in a handler can deadlock with a wait on it.
        self._count = 0
        self._previous: dict[int, Any] = {}

    def stop(self) -> bool:
        """Whether it is time to end."""
        return self._count >= 1

    def hurry(self) -> bool:
        """Whether it is time to end without waiting for anybody."""
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
