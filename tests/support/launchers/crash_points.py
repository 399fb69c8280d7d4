"""Kills the process of a launcher once, at a point of its code that the launcher chooses.

The file at TEST_DIED records that it has died: while it exists, the process lives on.
"""

import os
import signal
from pathlib import Path


def die_once() -> None:
    """Send SIGKILL to this process, unless it or an earlier process with the same TEST_DIED has died here before."""
    died = Path(os.environ["TEST_DIED"])
    try:
        died.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
