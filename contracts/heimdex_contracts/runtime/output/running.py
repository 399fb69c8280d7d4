"""The attempts that run in this process, in memory that the reader of its output shares.

A pipe does not say who wrote to it. A line belongs to an attempt only if no other attempt ran when it was written.
"""

import mmap
import os
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgspec

#: The fields of an attempt: job_id, stage, attempt.
Fields = Mapping[str, Any]

_SIZE: Final = 4096
#: A time that never comes. (JSON has no infinity.)
_NEVER: Final = 1e18
#: A counter that is odd while the memory is being written, and the length of the JSON after it.
_HEAD: Final = struct.Struct("=QI")


class Recently(msgspec.Struct, frozen=True):
    """Which attempts ran last. Times are those of `time.monotonic`, which all processes of a host share.

    now: the only running attempt. last: the attempt that ran alone before, and ended at `last_ended`.
    unknown_until: until this time, several attempts or an earlier one ran; far in the future while several run.
    """

    now: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    last_ended: float = 0.0
    unknown_until: float = 0.0

    def only(self, since: float) -> dict[str, Any]:
        """Return the only attempt that ran at any time since then. Empty when there was none, or more than one."""
        attempts = [self.now] if self.now else []
        if self.last and self.last != self.now and self.last_ended >= since:
            attempts.append(self.last)
        return attempts[0] if len(attempts) == 1 and self.unknown_until < since else {}


class SharedMemory:
    """Holds one `Recently`, written by one process and read by those that it forks."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SIZE)
        self._written = 0

    def write(self, recently: Recently) -> None:
        """Replace the value. One that is too long becomes one without attempts."""
        data = msgspec.json.encode(recently)
        if len(data) > _SIZE - _HEAD.size:
            data = msgspec.json.encode(Recently(unknown_until=recently.unknown_until))
        _HEAD.pack_into(self._memory, 0, self._written + 1, len(data))
        self._memory[_HEAD.size : _HEAD.size + len(data)] = data
        self._written += 2
        _HEAD.pack_into(self._memory, 0, self._written, len(data))

    def read(self) -> Recently:
        """Return the value; one without attempts while it is being written."""
        before, length = _HEAD.unpack_from(self._memory)
        data = self._memory[_HEAD.size : _HEAD.size + min(length, _SIZE)]
        if before % 2 or _HEAD.unpack_from(self._memory)[0] != before or not data:
            return Recently()
        try:
            return msgspec.json.decode(data, type=Recently)
        except msgspec.MsgspecError:
            return Recently()


class Running:
    """The attempts that run in this process now."""

    def __init__(self) -> None:
        self._count: Counter[tuple[tuple[str, Any], ...]] = Counter()
        self._recently = Recently()
        self._lock = threading.Lock()
        #: Set by a process whose output is captured.
        self.shared: SharedMemory | None = None

    @contextmanager
    def entered(self, fields: Fields) -> Iterator[None]:
        """Count the attempt as running. The same attempt may be entered more than once."""
        key = tuple(fields.items())
        self._add(key, 1)
        try:
            yield
        finally:
            self._add(key, -1)

    def only(self) -> dict[str, Any]:
        """Return the only running attempt. Empty when there is none, or more than one."""
        return dict(self._recently.now or {})

    def after_fork(self) -> None:
        """Make a forked child independent of the process that it was forked from."""
        self._lock = threading.Lock()
        self.shared = None

    def _add(self, key: tuple[tuple[str, Any], ...], change: int) -> None:
        with self._lock:
            before = len(self._count)
            self._count[key] += change
            if self._count[key] <= 0:
                del self._count[key]
            if before != len(self._count) and min(before, len(self._count)) < 2:
                self._recently = self._changed()
                if self.shared is not None:
                    self.shared.write(self._recently)

    def _changed(self) -> Recently:
        was, now = self._recently, time.monotonic()
        match list(self._count):
            case []:
                return Recently(
                    last=was.now,
                    last_ended=now,
                    unknown_until=max(was.unknown_until, was.last_ended if was.last not in (None, was.now) else 0.0),
                )
            case [key] if was.unknown_until == _NEVER:
                return Recently(now=dict(key), unknown_until=now)
            case [key]:
                return msgspec.structs.replace(was, now=dict(key))
            case _:
                return Recently(unknown_until=_NEVER)


RUNNING: Final = Running()
os.register_at_fork(after_in_child=RUNNING.after_fork)
