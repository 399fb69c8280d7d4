"""Makes the machine busy for a bounded time, as neighbours do: processes that compute and do nothing else."""

import os
import sys
from pathlib import Path
from typing import Self

from heimdex_cli.embedded.child_process import ChildProcess

_SPIN = "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"


class Spinners:
    """One process a core while it is entered, and for `seconds` at most. They end with us, however we end.

    count: how many processes; 0: none, which is how a test says that the machine is quiet.
    """

    def __init__(self, folder: Path, seconds: float, count: int | None = None) -> None:
        wanted = (os.cpu_count() or 1) if count is None else count
        argv = [sys.executable, "-S", "-c", _SPIN, str(seconds)]
        self._children = [ChildProcess(argv, log_path=folder / f"spinner-{number}.log") for number in range(wanted)]

    def __enter__(self) -> Self:
        for child in self._children:
            child.start()
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()

    @property
    def running(self) -> int:
        """How many still spin."""
        return sum(child.pid is not None for child in self._children)
