"""Keeps processes that are forked from a service from acting as the service.

A forked child shares its parent's file descriptors. It would answer to signals through the parent's wake-up pipe, hold
the parent's NATS connection open after the parent was killed, and, if it returns to the event loop, run the service a
second time. Closing a transport in the child is not an option: the event loop's epoll instance is shared too, and the
parent would no longer hear its sockets.
"""

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Collection, Iterable
from concurrent.futures.thread import _WorkItem
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Final, NoReturn, Protocol
from weakref import WeakSet

import msgspec

from heimdex_contracts.runtime import logs
from heimdex_contracts.runtime.output.running import ATTEMPT

#: The exit code of a child that returned to code of its parent (EX_SOFTWARE).
EXIT_FORKED: Final = 70
MAX_ERROR_LENGTH: Final = 2000


class Socket(Protocol):
    """The owner of a socket that no forked child may keep."""

    def socket_identity(self) -> tuple[int, int] | None:
        """Return the descriptor and the inode of the socket, or None if there is none. Must not block or raise."""


_sockets: Final[WeakSet[Socket]] = WeakSet()


def keep_from_children(owner: Socket) -> None:
    """In forked children, replace the owner's socket with the null device. The owner is not kept alive."""
    _sockets.add(owner)


def protect(loop: asyncio.AbstractEventLoop, signals: Collection[int], service: str) -> None:
    """Detach all processes that are forked from this one. Call it once, in the thread of `loop`.

    signals: those that the service handles; in a child they have Python's default handlers.
    service: the name of the service, for the log entry of a child that is ended.
    """
    _Protection(loop, signals, service)


def end_if_forked(pid: int, error: BaseException | None = None) -> None:
    """End this process if it is not `pid`: it was forked by code that returned, or raised `error`, and did not exit."""
    if os.getpid() != pid:
        _end("the caller of a stage's function", error)


class _Protection:
    def __init__(self, loop: asyncio.AbstractEventLoop, signals: Collection[int], service: str) -> None:
        global _service
        _service = service
        self._loop = loop
        self._signals = signals
        self._loop_thread = threading.get_ident()
        #: The signal mask of each thread that is forking.
        self._masks: dict[int, Iterable[int]] = {}
        os.register_at_fork(
            before=self._before, after_in_parent=self._restore_mask, after_in_child=self._after_in_child
        )

    def _before(self) -> None:
        # Until the child has its own handlers, a signal to it would reach the parent.
        self._masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)

    def _restore_mask(self) -> None:
        mask = self._masks.pop(threading.get_ident(), None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _after_in_child(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in self._signals:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        # Python does not know of libuv's handler, which writes to a pipe of the parent.
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _detach_sockets()
        if threading.get_ident() == self._loop_thread:
            _end_loop(self._loop)
        else:
            _end_after_work_item()
        self._restore_mask()


_service = ""


def _detach_sockets() -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for owner in _sockets:
        identity = owner.socket_identity()
        if identity is None:
            continue
        descriptor, inode = identity
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.fstat(descriptor).st_ino == inode:
                os.dup2(null, descriptor, inheritable=False)
    os.close(null)


def _end_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Let the inherited loop end the child as soon as control returns to it, before it runs any callback."""
    # What is due belongs to the parent: callbacks (a deque), and transports with unsent data (uvloop: a set). Both are
    # private, and dropping them closes nothing.
    for due in gc.get_referents(loop, getattr(loop, "__dict__", {})):
        if isinstance(due, deque) or (isinstance(due, set) and any(hasattr(each, "writelines") for each in due)):
            due.clear()
    loop.call_soon(_end, "the event loop of its parent")


def _end_after_work_item() -> None:
    """If this thread was a worker of an executor, let the child end with the work item, instead of waiting for more."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is _WorkItem.run.__code__:
            frame.f_locals["self"].future.add_done_callback(lambda _: _end("the executor of its parent"))
        frame = frame.f_back


def _end(where: str, error: BaseException | None = None) -> NoReturn:
    entry: dict[str, Any] = {
        "service": _service,
        "pid": os.getpid(),
        "event": "forked_child_ended",
        "message": f"a forked process returned to {where} and was ended: it must end with os._exit",
        **ATTEMPT.get(),
        **({} if error is None else {"error": _describe(error)}),
        "level": "error",
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
    }
    # Not through the logger: another thread of the parent may have held its lock during the fork.
    with contextlib.suppress(OSError):
        os.write(logs.entry_fd(), msgspec.json.encode(entry, enc_hook=repr) + b"\n")
    os._exit(EXIT_FORKED)


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:MAX_ERROR_LENGTH]
    except BaseException:  # an exception's own __str__ may raise anything
        return type(error).__name__[:MAX_ERROR_LENGTH]
