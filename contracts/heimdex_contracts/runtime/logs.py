"""Logging: one JSON object per line on stderr, for our own logs, those of libraries, and a stage's output."""

import json
import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, TextIO, cast

import msgspec
import structlog

from heimdex_contracts.runtime.output.capture import Capture
from heimdex_contracts.runtime.output.lines import Destination
from heimdex_contracts.runtime.output.running import ATTEMPT, RUNNING

Logger = structlog.typing.FilteringBoundLogger

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_STDERR: Final = 2
#: The capture of this process, and what `configure` was called with. Standard output and error exist once per process.
_capture: Capture | None = None
_configured: tuple[str, str] = ("info", "")


def _to_json(value: Mapping[str, Any], **_: Any) -> str:
    try:
        return msgspec.json.encode(value, enc_hook=repr).decode()
    except (TypeError, ValueError, RecursionError):
        # The entry has a lone surrogate or a key that is not text: the line must still be written.
        return json.dumps({str(key): entry for key, entry in value.items()}, default=repr)


def configure(level: str, service: str, *, capture_output: bool = False, to: Destination | None = None) -> Logger:
    """Configure structlog, and route the standard library's logging through the same renderer.

    level: one of debug, info, warning, error. Libraries log at warning or above. Returns a logger bound to `service`.
    capture_output: what this process and its children write to standard output and error becomes log entries with the
    event `stage_output`. This forks, so it must be called early; the process must call `flush` before it exits.
    to: with capture_output, where the entries are written; by default to stderr.
    """
    global _capture, _configured  # see there
    _configured = (level, service)
    stream: TextIO = sys.stderr
    problem: OSError | None = None
    if capture_output:
        try:
            _capture = Capture(service, to or Destination(_STDERR, None))
            stream = cast("TextIO", _capture.entries)
        except OSError as error:
            problem = error
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_attempt_of_context,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=_to_json)],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _add_attempt_of_thread],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_to_json),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(_LEVELS[level], logging.WARNING))
    logging.captureWarnings(True)
    log = cast("Logger", structlog.get_logger().bind(service=service))
    if _capture is not None:
        _capture.watch(log)
    if problem is not None:
        log.error(
            "output_not_captured",
            message="cannot start the process that reads the output of stages: it is written as it is",
            error=str(problem),
        )
    return log


class bound:  # used like a function
    """Add these three fields to each log entry of this context: of this task, of its child tasks, and of a thread that
    runs in a copy of this context. They also become those of the output of threads and child processes, as long as no
    other attempt runs in this process.

    A context manager. It runs once per attempt, so it is a class: a generator and structlog's own context variables,
    one per field, cost three times as much.
    """

    __slots__ = ("_fields", "_token")

    def __init__(self, *, job_id: str, stage: str, attempt: int) -> None:
        self._fields = {"job_id": job_id, "stage": stage, "attempt": attempt}

    def __enter__(self) -> None:
        self._token = ATTEMPT.set(self._fields)
        RUNNING.enter(self._fields)

    def __exit__(self, *_: object) -> None:
        RUNNING.leave(self._fields)
        if _capture is not None:
            _capture.flush_attempt(self._fields)
        ATTEMPT.reset(self._token)


def flush(drain_seconds: float = 1.0) -> None:
    """Write what is left of the captured output. Afterwards nothing is captured: the process must exit.

    drain_seconds: how long to wait for the output of child processes. Some of them may keep their pipe open.
    """
    if _capture is not None:
        _capture.close(drain_seconds)
    sys.stderr.flush()


def entry_fd() -> int:
    """Return the file descriptor on which the entries of this process are written, for a line that must not be lost."""
    return _capture.destination.fd if _capture is not None else _STDERR


def for_child() -> tuple[list[str], tuple[int, ...]]:
    """Return what a child process needs so that its entries stand beside ours.

    These are the arguments of `configure_child`, and the file descriptors that the child must inherit.
    """
    to = _capture.destination if _capture is not None else Destination(_STDERR, None)
    fds = tuple(fd for fd in to if fd is not None)
    return [*_configured, *map(str, fds)], fds


def configure_child(arguments: Sequence[str]) -> Logger:
    """Configure the logs of a child process, and capture its output. arguments: those that `for_child` returned."""
    level, service, fd, *lock_fd = arguments
    to = Destination(int(fd), int(lock_fd[0]) if lock_fd else None)
    return configure(level, service, capture_output=True, to=to)


def _add_attempt_of_context(_: Any, __: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add the attempt whose context this is. Fields that the entry has itself stay."""
    for name, value in ATTEMPT.get().items():
        entry.setdefault(name, value)
    return entry


def _add_attempt_of_thread(_: Any, __: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add the attempt of a thread that a stage has started. Threads do not inherit the context of their parent.

    The entries of the main thread have the context of their task; one without an attempt belongs to the worker.
    """
    record = entry.get("_record")
    if "job_id" not in entry and record is not None and record.thread != threading.main_thread().ident:
        entry.update(RUNNING.only())
    return entry
