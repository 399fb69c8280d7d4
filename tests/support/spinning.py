"""Keeps the machine busy for a limited time with processes that only compute, as other programs on it may."""

import os
import sys
from pathlib import Path
from typing import Self

from heimdex_cli.embedded.child_process import ChildProcess

_SPIN = "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"


class Spinners:
    """Runs one process per core while its context is open, for at most `seconds`.

    The processes end when the test process does, even after SIGKILL.

    count: the number of processes; 0 means none, for a test on an idle machine.
    """

    def __init__(self, folder: Path, seconds: float, count: int | None = None) -> None:
        number_of_processes = (os.cpu_count() or 1) if count is None else count
        argv = [sys.executable, "-S", "-c", _SPIN, str(seconds)]
        self._children = [
            ChildProcess(argv, log_path=folder / f"spinner-{number}.log") for number in range(number_of_processes)
        ]

    def __enter__(self) -> Self:
        for child in self._children:
            child.start()
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()

    @property
    def running(self) -> int:
        """The number of processes that still run."""
        return sum(child.pid is not None for child in self._children)
