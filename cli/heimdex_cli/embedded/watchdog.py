# ruff: noqa: S603 - starting processes is this module's work; no command comes from outside
"""A small process that outlives ours, however ours ends, and ends the children it would leave behind.

child_process.py registers each child with `WATCHDOG`. The watchdog (this module, run as a program) reads those
registrations from a pipe whose other end only we hold: when the pipe ends, we are gone, and it ends what is
still registered: first the services, then the servers they use. This also holds for SIGKILL, needs no code
in the children, and, unlike Linux's parent-death signal, survives a change of user and does not hang on a
thread's life.
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

# Two readings of one process's start time may differ by the clock's steps; a reused pid differs by far more.
_SAME_PROCESS_SECONDS = 2.0
# A process that SIGKILL has not ended by then hangs in the kernel.
_UNKILLABLE_SECONDS = 10.0


@dataclass(frozen=True)
class ChildRecord:
    """One child: who it is, and how it is to be ended."""

    pid: int
    started_at: float
    """Seconds since the epoch; tells the process from a later one with the same pid."""
    stop_signal: int
    stop_seconds: float
    """How long it may take after the stop signal, before SIGKILL."""
    rank: int
    """Lower ranks are ended first."""

    def find(self) -> psutil.Process | None:
        """The process, unless it has ended (a zombie has)."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_at) < _SAME_PROCESS_SECONDS
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def end(children: list[ChildRecord]) -> list[ChildRecord]:
    """End these processes, rank by rank: the stop signal, a wait, then SIGKILL to them and their descendants.

    Returns those that were still there. The processes need not be ours.
    """
    found: list[ChildRecord] = []
    for rank in sorted({child.rank for child in children}):
        pending = {child: process for child in children if child.rank == rank and (process := child.find())}
        found += pending
        for child, process in pending.items():
            _signal(process, child.stop_signal)
        asked_at = time.monotonic()
        while pending:
            for child, process in list(pending.items()):
                if child.find() is None:
                    del pending[child]
                    continue
                waited = time.monotonic() - asked_at
                if waited > child.stop_seconds:
                    kill_tree(process)
                if waited > child.stop_seconds + _UNKILLABLE_SECONDS:
                    del pending[child]
            time.sleep(0.05)
    return found


def kill_tree(process: psutil.Process) -> None:
    """SIGKILL to the process and then to the descendants that it had."""
    try:
        descendants = process.children(recursive=True)
    except psutil.Error:
        descendants = []
    for each in [process, *descendants]:
        _signal(each, signal.SIGKILL)


def _signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.Error):  # it may have ended by itself meanwhile
        process.send_signal(number)


class Watchdog:
    """Our end of the pipe. Starts the watchdog process with the first registration; safe to use from any
    thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._children: dict[int, ChildRecord] = {}

    def watch(self, child: ChildRecord) -> None:
        """End this process if we end before `forget` is called for it."""
        with self._lock:
            self._children[child.pid] = child
            self._tell({"watch": asdict(child)})

    def forget(self, pid: int) -> None:
        """This process has ended, and its pid may soon be another's."""
        with self._lock:
            if self._children.pop(pid, None):
                self._tell({"forget": pid})

    def _tell(self, message: dict[str, object]) -> None:
        if not self._write(message):
            # The first time, or somebody killed it: a new one hears everything anew.
            self._process = subprocess.Popen(
                # By its path, and -P: it needs psutil only, not what our packages import.
                [sys.executable, "-P", str(Path(__file__).resolve())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                # Not in our folder, which may be removed or unmounted meanwhile.
                cwd="/",
            )
            for child in self._children.values():
                self._write({"watch": asdict(child)})

    def _write(self, message: dict[str, object]) -> bool:
        if self._process is None or self._process.stdin is None:
            return False
        try:
            # One write below PIPE_BUF: whole or not at all, also if we die during it.
            os.write(self._process.stdin.fileno(), json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            self._process.stdin.close()
            self._process.wait()
            return False
        return True


WATCHDOG = Watchdog()
"""The one of this process."""


def main() -> None:
    """Read registrations until the pipe ends, then end what is still registered."""
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
