"""Stage functions for attempts that run in a subprocess; `ctx.job_type` determines what they do."""

import asyncio
import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from heimdex import Context, PermanentError


class OddError(BaseException):
    """An error that is not an Exception, as a library may define one."""


#: Errors that are not an Exception, or that Python itself handles in a special way.
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


def raise_blocking(ctx: Context) -> NoReturn:
    raise ODD[ctx.job_type]("odd")


async def raise_async(ctx: Context) -> NoReturn:
    raise ODD[ctx.job_type]("odd")


#: The variable with the path of the file to which `leave_child` writes the pid of its child.
CHILD = "TEST_CHILD"


def leave_child(ctx: Context) -> None:
    """Fork a child that lives for an hour, and then end as the job's type says, `<how>-<end>`.

    how: how the child is forked: "fork", "bare" (without Python noticing), "escaping" (as "bare", in a new session).
    end: what the attempt then does: "returns", "dies" (SIGKILL), "waits" (until it is interrupted).
    """
    how, end = ctx.job_type.split("-")
    # PyDLL keeps the interpreter lock during the fork, so that the child has it and can continue.
    libc = ctypes.PyDLL(None)
    path, unfinished = os.environ[CHILD].encode(), f"{os.environ[CHILD]}.new".encode()
    # A thread that has waited this long for the lock asks for it. The child would obey, and wait for that thread for
    # ever.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    time.sleep(0.01)  # those that have asked before get it now
    if (os.fork() if how == "fork" else libc.fork()) == 0:
        # The child never releases that lock: another thread may have held the mutex that guards it during the fork.
        if how == "escaping":
            libc.setsid()
        pid = str(libc.getpid()).encode()
        file = libc.open(unfinished, os.O_CREAT | os.O_WRONLY, 0o600)
        libc.write(file, pid, len(pid))
        libc.close(file)
        libc.rename(unfinished, path)
        libc.sleep(3600)
        libc._exit(0)
    sys.setswitchinterval(interval)
    while not Path(os.environ[CHILD]).exists():
        time.sleep(0.01)
    if end == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    while end == "waits":
        time.sleep(0.01)
        ctx.report(0.5)


def return_at_once(ctx: Context) -> None:
    pass


async def exit_in_task(ctx: Context) -> None:
    asyncio.get_running_loop().create_task(_exit())
    await asyncio.sleep(3600)


async def _exit() -> None:
    raise SystemExit(3)


async def exit_in_callback(ctx: Context) -> None:
    asyncio.get_running_loop().call_later(0.01, sys.exit, 3)
    await asyncio.sleep(3600)


async def stop_loop(ctx: Context) -> None:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(3600)


async def fork_and_return(ctx: Context) -> None:
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])  # noqa: ASYNC222  # it ends at once
        raise ValueError(f"the child that returned ended with {code}")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt("not telling")


def raise_hostile(ctx: Context) -> NoReturn:
    raise type("X" * 3_000_000, (Unspeakable,), {}) from ValueError("y" * 3_000_000 + "\x00\ud800")


async def raise_group(ctx: Context) -> None:
    async def fail() -> NoReturn:
        raise PermanentError("the file is not a video")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fail())


async def ignore_cancellation(ctx: Context) -> None:
    while True:
        try:
            await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            continue


def wait_in_a_thread(ctx: Context) -> None:
    time.sleep(3600)


def report_garbage(ctx: Context) -> None:
    object.__setattr__(ctx._state, "_fraction", "nan")
    object.__setattr__(ctx._state, "reported", True)
    time.sleep(1)  # for several reports
