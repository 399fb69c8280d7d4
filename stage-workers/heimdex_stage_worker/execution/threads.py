"""Runs each blocking function at once in a thread of its own, however many others have not returned.

A separate thread starts them. `Thread.start` waits until the new thread has held the interpreter lock, which takes
longer the more threads compute, and the event loop must renew leases in the meantime. All threads are daemons: none
keeps the process alive.
"""

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any


class Threads:
    """The threads of one worker. name: the name of each thread, for debuggers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._due: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._starter: threading.Thread | None = None

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Call the function in a new thread, in a copy of the caller's context. Returns the future of its result.

        A future that is cancelled in time prevents the call. If no thread can be started, the future has that error.
        """
        if self._starter is None:
            self._starter = threading.Thread(target=self._start, name=f"{self._name}-starter", daemon=True)
            self._starter.start()
        future: Future[Any] = Future()
        self._due.put((future, partial(contextvars.copy_context().run, function)))
        return future

    def _start(self) -> None:
        while True:
            future, function = self._due.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                threading.Thread(target=_run, args=(future, function), name=self._name, daemon=True).start()
            except RuntimeError as error:
                future.set_exception(error)
            del future, function  # otherwise they would be kept alive until the next submission


def _run(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        result = function()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
