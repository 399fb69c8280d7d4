"""Runs each blocking function in a thread of its own, at once, however many others never came back.

Another thread starts them: `Thread.start` waits until the new one has had the interpreter lock, which takes the longer
the more threads compute, and the event loop has heartbeats to send meanwhile. None of them keeps the process alive.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any


class Threads:
    """Those of one worker. name: what a debugger shows for each."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._due: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._starter: threading.Thread | None = None

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Call it in a thread. Cancelled before that, it is never called; a thread that cannot be had is its error."""
        if self._starter is None:
            self._starter = threading.Thread(target=self._start, name=f"{self._name}-starter", daemon=True)
            self._starter.start()
        future: Future[Any] = Future()
        self._due.put((future, function))
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
            del future, function  # not kept until the next one comes


def _run(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        result = function()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
