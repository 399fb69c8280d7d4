"""Splits bytes into lines of text, and writes log entries so that no two of them mix."""

import codecs
import contextlib
import fcntl
import os
import re
import select
import stat
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

#: A longer line becomes several entries, each of this many characters at most.
MAX_LINE: Final = 8192
#: How long an entry waits for a destination that accepts nothing and is not blocking.
_BLOCKED_SECONDS: Final = 1.0
_ENDS: Final = re.compile(r"[\r\n]+")


class Lines:
    """Splits the bytes of one source. A progress bar's carriage return ends a line too. Blank lines are left out."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    @property
    def begun(self) -> bool:
        """Whether a line, or a character, was begun and not ended."""
        return bool(self._rest or self._decoder.getstate()[0])

    def feed(self, data: bytes, *, final: bool = False) -> list[str]:
        """Return the lines that these bytes complete. final: what is left is a line too."""
        *lines, rest = _ENDS.split(self._rest + self._decoder.decode(data, final))
        if final or len(rest) >= MAX_LINE:
            lines.append(rest)
            rest = ""
        self._rest = rest
        return [
            line[start : start + MAX_LINE] for line in lines if line.strip() for start in range(0, len(line), MAX_LINE)
        ]


def output_entry(service: str, stream: str, line: str, attempt: Mapping[str, Any]) -> str:
    """Return the log entry of one line of output. stream: stdout or stderr."""
    entry = {
        "event": "stage_output",
        "message": line,
        "stream": stream,
        "service": service,
        **attempt,
        "level": "info",
        "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    return msgspec.json.encode(entry, enc_hook=repr).decode() + "\n"


class Destination(NamedTuple):
    """Where entries are written. lock_fd: a file that is locked while an entry is written; None: no lock is needed."""

    fd: int
    lock_fd: int | None

    @classmethod
    def of(cls, fd: int) -> "Destination":
        """Return a private duplicate of this descriptor, which programs that are started do not inherit.

        The kernel divides an entry that a pipe has no room for, so several processes could mix theirs.
        """
        kind = os.fstat(fd).st_mode
        lock_fd = None
        if (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)) and hasattr(os, "memfd_create"):
            with contextlib.suppress(OSError):  # a sandbox may refuse it; then two long entries may mix
                lock_fd = os.memfd_create("heimdex-log-lock")
        return cls(os.dup(fd), lock_fd)


class Entries:
    """Writes entries to a destination, from any thread and from forked children. Has the methods of a text file.

    An entry that cannot be written, because the disk is full or nobody reads the pipe, is dropped.
    """

    def __init__(self, destination: Destination) -> None:
        self._fd, self._lock_fd = destination
        self.after_fork()
        os.register_at_fork(after_in_child=self.after_fork)

    def after_fork(self) -> None:
        """Replace the lock: in a forked child, no thread is left that would release it."""
        # Reentrant: an object may print when it is collected, in the middle of an entry.
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        """Write a whole entry."""
        with self._lock:
            self._lock_others(fcntl.LOCK_EX)
            try:
                self._write(text.encode(errors="backslashreplace"))
            except OSError:
                pass  # see the class
            finally:
                self._lock_others(fcntl.LOCK_UN)
        return len(text)

    def flush(self) -> None:
        """Do nothing: every write is complete."""

    def _write(self, data: bytes) -> None:
        blocked_until = 0.0
        while data:
            try:
                data = data[os.write(self._fd, data) :]
                blocked_until = 0.0
            except BlockingIOError:
                blocked_until = blocked_until or time.monotonic() + _BLOCKED_SECONDS
                if time.monotonic() > blocked_until:
                    raise
                select.select([], [self._fd], [], _BLOCKED_SECONDS)

    def _lock_others(self, operation: int) -> None:
        if self._lock_fd is not None:
            # A lock of the process, not of the descriptor, which forked children share.
            fcntl.lockf(self._lock_fd, operation)
