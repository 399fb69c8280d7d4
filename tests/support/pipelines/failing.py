"""Job types that fail in one way each, and one that writes a lot. All have the one stage `explaining`.

`caused` and `caused_async` raise an error with a cause and a note, `grouped` a PermanentError in a TaskGroup; `memory`
asks for more memory than the process may have; `slow` takes longer than the time-out; `killed` sends SIGKILL to its
process, and `crashed` aborts it, both after some last words. `talkative` and `talkative_async` write to everything.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import NoReturn

from heimdex import Context, PermanentError, Pipeline, Stage

STAGE = "explaining"

_STAGE = Stage(STAGE, expected_seconds=1, code=f"{__name__}:explain", timeout_seconds=2)

PIPELINES = (
    *(
        Pipeline(type=name, stages=(_STAGE,), retry_backoff_seconds=(0.1,))
        for name in ("caused", "caused_async", "grouped", "memory", "slow", "talkative", "talkative_async")
    ),
    *(Pipeline(type=name, stages=(_STAGE,), retry_backoff_seconds=(0.1, 0.1)) for name in ("killed", "crashed")),
)

#: What `talkative` writes, by the stream on which it is expected; without the entries of its loggers.
SPOKEN = {
    "stdout": {"a print", "two pieces", "a thread", "a child", "no newline", "a C library"},
    "stderr": {"a print to stderr", "a child on stderr", "a descriptor"},
}


def explain(ctx: Context) -> object:
    """Fail as the job's type says. An async type gets a coroutine."""
    match ctx.job_type.removesuffix("_async"):
        case "talkative":
            return _talk_async() if ctx.job_type.endswith("_async") else _talk()
        case "caused":
            return _fail_async() if ctx.job_type.endswith("_async") else _fail()
        case "grouped":
            return _fail_in_group()
        case "memory":
            return _exhaust_memory()
        case "slow":
            return _wait_long()
        case "killed":
            os.write(2, b"last words before SIGKILL\n")
            os.kill(os.getpid(), signal.SIGKILL)
        case "crashed":
            os.write(2, b"last words before SIGABRT\n")
            os.abort()
    return None


def _talk() -> None:
    print("a print")
    print("two", "pieces")
    print("a print to stderr", file=sys.stderr)
    threads = [
        threading.Thread(target=print, args=("a thread",)),
        threading.Thread(target=logging.getLogger("mine").error, args=("logging in a thread",)),
    ]
    for thread in threads:
        thread.start()
        thread.join()
    subprocess.run(["sh", "-c", "echo a child; echo a child on stderr >&2"], check=True)
    os.write(2, b"a descriptor\n")
    libc = ctypes.CDLL(None)
    libc.puts(b"a C library")
    libc.fflush(None)
    logging.getLogger("mine").warning("logging")
    warnings.warn("a warning", stacklevel=1)
    sys.stdout.buffer.write(b"\xff\x00 rubbish\n")
    print("no newline", end="", flush=True)


async def _talk_async() -> None:
    _talk()
    await asyncio.create_task(asyncio.to_thread(print, "a task's thread"))


def _probe() -> dict[str, int]:
    return {"width": 640}


def _count_frames() -> int:
    return _probe()["frames"]


def _fail() -> NoReturn:
    try:
        _count_frames()
    except KeyError as error:
        failure = ValueError("the video has no frames")
        failure.add_note("probe: /data/in.mkv")
        raise failure from error
    raise AssertionError("not reached")


async def _fail_async() -> None:
    await asyncio.sleep(0)
    _fail()


async def _fail_in_group() -> None:
    async def refuse() -> None:
        raise PermanentError("the file is not a video")

    async with asyncio.TaskGroup() as group:
        group.create_task(refuse())
        group.create_task(asyncio.sleep(60))


def _exhaust_memory() -> None:
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), limit[1]))
    try:
        bytearray(1 << 40)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def _wait_long() -> None:
    with contextlib.suppress(OSError):
        _decode_forever()


def _decode_forever() -> None:
    time.sleep(6)
