"""Functions for attempts in a process of their own; `ctx.job_type` tells them what to do."""

import asyncio
import ctypes
import os
import signal
import time
from pathlib import Path
from typing import NoReturn

from heimdex_stage_worker.context import StageContext


class OddError(BaseException):
    """No Exception, as a library's own may be."""


#: What is no Exception, or what Python itself listens for.
ODD: dict[str, type[BaseException]] = {
    error.__name__: error
    for error in (
        StopIteration,
        StopAsyncIteration,
        SystemExit,
        KeyboardInterrupt,
        asyncio.CancelledError,
        GeneratorExit,
        OddError,
    )
}


def raise_blocking(ctx: StageContext) -> NoReturn:
    raise ODD[ctx.job_type]("odd")


async def raise_async(ctx: StageContext) -> NoReturn:
    raise ODD[ctx.job_type]("odd")


#: Names the file to which `leave_child` writes the pid of its child.
CHILD = "TEST_CHILD"


def leave_child(ctx: StageContext) -> None:
    """Fork a child that lives for an hour, and do as the job's type says, `<how>-<end>`.

    how: "fork", "bare" (unknown to Python), "escaping" (the same, and out of the session).
    end: "returns", "dies", "waits".
    """
    how, end = ctx.job_type.split("-")
    # PyDLL keeps the interpreter lock, so that the child can go on.
    if (os.fork() if how == "fork" else ctypes.PyDLL(None).fork()) == 0:
        if how == "escaping":
            os.setsid()
        written = Path(os.environ[CHILD]).with_suffix(".new")
        written.write_text(str(os.getpid()))
        written.rename(os.environ[CHILD])
        time.sleep(3600)
        os._exit(0)
    while not Path(os.environ[CHILD]).exists():
        time.sleep(0.01)
    if end == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    while end == "waits":
        time.sleep(0.01)
        ctx.report(0.5)


def return_at_once(ctx: StageContext) -> None:
    pass
