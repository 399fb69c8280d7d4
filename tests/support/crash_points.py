"""Kills a process with SIGKILL at each of its system calls that change a store of files, one after the other.

    python -m tests.support.crash_points FOLDER create|delete

For n = 1, 2, ... it makes a new store FOLDER/<n>, and forks a process that does the work and is killed at its n-th such
call, until the work ends before that. It prints the number of the last store; there the work was done.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from heimdex_files.backends import local
from heimdex_files.blocking import BlockingFileStore

CALLS = ("mkdir", "open", "write", "fsync", "fdatasync", "rename", "rmdir", "unlink")
JOB = "acme/01890a5d-ac96-774b-bcce-b302099a8057"
KEY = f"{JOB}/1/extracting/0.abcdefghijklmnopqrstuvwx/film.mp4"
PIECES = 3
CONTENT = bytes(range(256)) * (4096 * PIECES)
#: So that a file of this size is also flushed on the way.
local.FLUSH_BYTES = 1024 * 1024  # type: ignore[misc]


def create(root: Path) -> BlockingFileStore:
    store = BlockingFileStore(local.LocalFolder(root))
    store.create(KEY, CONTENT, content_type="video/mp4")
    return store


def delete(root: Path) -> None:
    BlockingFileStore(local.LocalFolder(root)).delete([JOB])


def killed_at(number: int, work: Callable[[Path], Any], root: Path) -> bool:
    """Do the work in a process that is killed at this call. Returns whether it came that far."""
    process = os.fork()
    if process == 0:
        try:
            _kill_at(number)
            work(root)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(process, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        sys.exit("the work failed")
    return False


def _kill_at(number: int) -> None:
    count = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return replacement

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def main() -> None:
    folder, work = Path(sys.argv[1]), {"create": create, "delete": delete}[sys.argv[2]]
    number = 1
    while True:
        root = folder / str(number)
        root.mkdir()
        if work is delete:
            process = os.fork()  # a thread of this process must not run when it forks
            if process == 0:
                create(root)
                os._exit(0)
            os.waitpid(process, 0)
        if not killed_at(number, work, root):
            break
        number += 1
    print(number)


if __name__ == "__main__":
    main()
