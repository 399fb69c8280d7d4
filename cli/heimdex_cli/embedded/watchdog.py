# ruff: noqa: S603 - starting processes is this module's work; no command comes from outside
"""A small process that outlives its parent, however the parent ends, and ends the child processes it leaves behind.

child_process.py registers each child with `WATCHDOG`. The watchdog (this module, run as a program) reads those
registrations from a pipe whose write end only the parent has. When the pipe closes, the parent has died, and the
watchdog ends the processes that are still registered: first the services, then the servers that they use. This also
works after SIGKILL and needs no code in the children. Unlike Linux's parent-death signal, it survives a change of user
and does not depend on the life of the thread that started the child.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

# Two readings of a process's start time can differ when the clock is stepped; that of a reused pid differs by far more.
_SAME_PROCESS_SECONDS = 2.0
# A process that is still there this long after SIGKILL hangs in the kernel.
_UNKILLABLE_SECONDS = 10.0


@dataclass(frozen=True)
class ChildRecord:
    """The identity of a child process, and the way to end it."""

    pid: int
    started_at: float
    """Seconds since the epoch; distinguishes the process from a later one with the same pid."""
    stop_signal: int
    stop_seconds: float
    """The seconds between the stop signal and SIGKILL."""
    rank: int
    """Lower ranks are ended first."""

    def find(self) -> psutil.Process | None:
        """Return the process, or None when it has ended; a zombie has ended."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_at) < _SAME_PROCESS_SECONDS
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def end(children: list[ChildRecord]) -> list[ChildRecord]:
    """End these processes, rank by rank: send the stop signal, wait, then send SIGKILL to them and their descendants.

    Returns the processes that were still running. They need not be children of this process.
    """
    running: list[ChildRecord] = []
    for rank in sorted({child.rank for child in children}):
        pending = {child: process for child in children if child.rank == rank and (process := child.find())}
        running += pending
        for child, process in pending.items():
            _signal(process, child.stop_signal)
        signaled_at = time.monotonic()
        while pending:
            for child, process in list(pending.items()):
                if child.find() is None:
                    del pending[child]
                    continue
                waited = time.monotonic() - signaled_at
                if waited > child.stop_seconds:
                    kill_tree(process)
                if waited > child.stop_seconds + _UNKILLABLE_SECONDS:
                    del pending[child]
            time.sleep(0.05)
    return running


def kill_tree(process: psutil.Process) -> None:
    """Send SIGKILL to the process, then to the descendants that it had before."""
    try:
        descendants = process.children(recursive=True)
    except psutil.Error:
        descendants = []
    for each in [process, *descendants]:
        _signal(each, signal.SIGKILL)


def _signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.Error):  # it may have ended in the meantime
        process.send_signal(number)


class Watchdog:
    """The parent's end of the pipe. Starts the watchdog process with the first registration. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._children: dict[int, ChildRecord] = {}

    def watch(self, child: ChildRecord) -> None:
        """Register a child process: the watchdog ends it if this process dies before it calls `forget`."""
        with self._lock:
            self._children[child.pid] = child
            self._send({"watch": asdict(child)})

    def forget(self, pid: int) -> None:
        """Remove a child process that has ended; the system may reuse its pid."""
        with self._lock:
            if self._children.pop(pid, None):
                self._send({"forget": pid})

    def _send(self, message: dict[str, object]) -> None:
        if not self._write(message):
            # The first message, or the watchdog was killed: start one and send it every registration.
            self._process = subprocess.Popen(
                # Run by path and with -P, so that it imports psutil only and none of Heimdex's packages.
                [sys.executable, "-P", str(Path(__file__).resolve())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                # Not the current folder, which may be removed or unmounted in the meantime.
                cwd="/",
            )
            for child in self._children.values():
                self._write({"watch": asdict(child)})

    def _write(self, message: dict[str, object]) -> bool:
        if self._process is None or self._process.stdin is None:
            return False
        try:
            # One write below PIPE_BUF is atomic, also if this process dies during it.
            os.write(self._process.stdin.fileno(), json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            self._process.stdin.close()
            self._process.wait()
            return False
        return True


WATCHDOG = Watchdog()
"""The watchdog of this process."""


def main() -> None:
    """Read registrations until the pipe closes, then end the processes that are still registered."""
    children: dict[int, ChildRecord] = {}
    for line in sys.stdin:
        message = json.loads(line)
        if "watch" in message:
            child = ChildRecord(**message["watch"])
            children[child.pid] = child
        else:
            children.pop(message["forget"], None)
    end(list(children.values()))


if __name__ == "__main__":
    main()
