"""Captures the standard output and error of this process and of its children as log entries.

What Python code of this process prints is written at once, with the fields of the attempt whose context it has. What C
code and child processes write to the file descriptors 1 and 2 goes through pipes to the process in `reader`.
"""

import faulthandler
import io
import os
import sys
import threading
from typing import Any, BinaryIO, Final, Protocol, cast

from heimdex_contracts.runtime.output import reader
from heimdex_contracts.runtime.output.lines import Destination, Entries, Lines, output_entry
from heimdex_contracts.runtime.output.running import ATTEMPT, RUNNING, Fields, SharedMemory

_FDS: Final = {"stdout": 1, "stderr": 2}
_FIELDS: Final = ("job_id", "stage", "attempt")


class _Log(Protocol):
    def error(self, event: str, **fields: Any) -> Any: ...


class _Output(io.RawIOBase):
    """The bytes below `sys.stdout` or `sys.stderr`: each thread and attempt completes lines of its own."""

    def __init__(self, service: str, stream: str, entries: Entries) -> None:
        self._service = service
        self._stream = stream
        self._entries = entries
        #: By thread and attempt, the line that it has begun.
        self.begun: dict[tuple[int, tuple[Any, ...]], Lines] = {}

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return _FDS[self._stream]  # so that a child process may get this stream

    def close(self) -> None:
        """Stay open: the other stages of this process print here too."""

    def write(self, data: Any) -> int:
        data = bytes(data)
        attempt = _attempt_here()
        key = (threading.get_ident(), tuple(attempt.values()))
        lines = self.begun.pop(key, None) or Lines()
        self._write(lines.feed(data), attempt)
        if lines.begun:
            self.begun[key] = lines
        return len(data)

    def flush_attempt(self, attempt: Fields | None = None) -> None:
        """Write the lines that were begun and not ended, by one attempt or by all."""
        for thread, key in list(self.begun):
            fields = dict(zip(_FIELDS, key, strict=False))
            if attempt in (None, fields) and (lines := self.begun.pop((thread, key), None)):
                self._write(lines.feed(b"", final=True), fields)

    def _write(self, lines: list[str], attempt: Fields) -> None:
        for line in lines:
            self._entries.write(output_entry(self._service, self._stream, line, attempt))


class _Text(io.TextIOWrapper):
    """`sys.stdout` or `sys.stderr` of a process whose output is captured. It stays open."""

    def __init__(self, output: _Output) -> None:
        super().__init__(cast("BinaryIO", output), "utf-8", "backslashreplace", write_through=True)

    def close(self) -> None:
        self.flush()


def _attempt_here() -> dict[str, Any]:
    """Return the fields of the attempt whose code calls this, as far as they are known."""
    if context := ATTEMPT.get():
        return dict(context)
    # The main thread runs the worker itself too. A stage's own threads have no context.
    return {} if threading.current_thread() is threading.main_thread() else RUNNING.only()


class Capture:
    """The captured output of this process, for the rest of its life.

    service: the value of this field in the entries. to: where the entries are written. Raises OSError when the pipes or
    the reader cannot be created.
    """

    def __init__(self, service: str, to: Destination) -> None:
        private = to if to.fd not in _FDS.values() else Destination.of(to.fd)
        self.destination: Final = private
        self.entries: Final = Entries(private)
        self._closing = False
        self._ended = threading.Event()
        running = SharedMemory()
        ends = {stream: os.pipe() for stream in _FDS}
        alive, alive_in_reader = os.pipe()
        keep = {fd for fd in private if fd is not None}
        reading = {stream: end for stream, (end, _) in ends.items()}
        reader.fork(reading, alive_in_reader, self.entries, keep, running, service)
        os.close(alive_in_reader)
        for stream, (read_end, write_end) in ends.items():
            os.close(read_end)
            os.dup2(write_end, _FDS[stream])
            os.close(write_end)
        RUNNING.shared = running
        self._alive = alive
        self._outputs = {stream: _Output(service, stream, self.entries) for stream in _FDS}
        sys.stdout, sys.stderr = (_Text(output) for output in self._outputs.values())
        # A crash leaves the stack of the thread that crashed. The reader outlives it.
        faulthandler.enable(_FDS["stderr"], all_threads=False)

    def watch(self, log: _Log) -> None:
        """Stop capturing if the reader is killed: without it, a write to the pipes kills a child process."""
        threading.Thread(target=self._watch, args=(log,), name="output-watch", daemon=True).start()

    def flush_attempt(self, fields: Fields) -> None:
        """Write the lines that an attempt has begun and not ended."""
        for output in self._outputs.values():
            if output.begun:
                output.flush_attempt(fields)

    def close(self, drain_seconds: float) -> None:
        """Stop capturing, and wait until what was written has become entries, but not longer than this."""
        for output in self._outputs.values():
            output.flush_attempt()
        self._closing = True
        self._redirect(os.open(os.devnull, os.O_WRONLY))
        self._ended.wait(drain_seconds)

    def _watch(self, log: _Log) -> None:
        os.read(self._alive, 1)
        if not self._closing:
            self._redirect(self.destination.fd)
            log.error(
                "output_not_captured",
                message="the process that reads the output of stages was killed: restart this process",
            )
        self._ended.set()

    @staticmethod
    def _redirect(to: int) -> None:
        for fd in _FDS.values():
            os.dup2(to, fd)
