"""The attempts that run in this process, in memory that the reader of its output shares.

A pipe does not say who wrote to it. A line belongs to an attempt only if no other attempt ran when it was written.
"""

import mmap
import os
import struct
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final

import msgspec

#: The fields of an attempt: job_id, stage, attempt.
Fields = Mapping[str, Any]

_SIZE: Final = 4096
#: A time that never comes. (JSON has no infinity.)
_NEVER: Final = 1e18
#: A counter that is odd while the memory is being written, the time at which `now` ended (0: it runs), and the length
#: of the JSON after it.
_HEAD: Final = struct.Struct("=QdI")
_ENDED: Final = struct.Struct("=d")
_ENDED_AT: Final = 8


class Recently(msgspec.Struct, frozen=True, gc=False):
    """Which attempts ran last. Times are those of `time.monotonic`, which all processes of a host share.

    now: the only running attempt. last: the attempt that ran alone before, and ended at `last_ended`.
    unknown_until: until this time, several attempts or an earlier one ran; far in the future while several run.
    """

    now: Fields | None = None
    last: Fields | None = None
    last_ended: float = 0.0
    unknown_until: float = 0.0

    def only(self, since: float) -> dict[str, Any]:
        """Return the only attempt that ran at any time since then. Empty when there was none, or more than one."""
        attempts = [self.now] if self.now else []
        if self.last and self.last != self.now and self.last_ended >= since:
            attempts.append(self.last)
        return dict(attempts[0]) if len(attempts) == 1 and self.unknown_until < since else {}


_encode: Final = msgspec.json.Encoder().encode
_recently: Final = msgspec.json.Decoder(Recently)


class SharedMemory:
    """Holds one `Recently`, written by one process and read by those that it forks."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SIZE)
        self._written = 0

    def write(self, recently: Recently) -> None:
        """Replace the value. One that is too long becomes one without attempts."""
        data = _encode(recently)
        if len(data) > _SIZE - _HEAD.size:
            data = _encode(Recently(unknown_until=recently.unknown_until))
        _HEAD.pack_into(self._memory, 0, self._written + 1, 0.0, len(data))
        self._memory[_HEAD.size : _HEAD.size + len(data)] = data
        self._written += 2
        _HEAD.pack_into(self._memory, 0, self._written, 0.0, len(data))

    def end(self, at: float) -> None:
        """Note that the attempt `now` ended at this time. Cheaper than `write`."""
        _ENDED.pack_into(self._memory, _ENDED_AT, at)

    def read(self) -> Recently:
        """Return the value; one without attempts while it is being written."""
        before, ended, length = _HEAD.unpack_from(self._memory)
        data = self._memory[_HEAD.size : _HEAD.size + min(length, _SIZE)]
        if before % 2 or _HEAD.unpack_from(self._memory)[0] != before or not data:
            return Recently()
        try:
            recently = _recently.decode(data)
        except msgspec.MsgspecError:
            return Recently()
        return _ended(recently, ended) if ended else recently


def _ended(recently: Recently, at: float) -> Recently:
    """Return the value after the attempt `now` has ended."""
    earlier = recently.last_ended if recently.last not in (None, recently.now) else 0.0
    return Recently(last=recently.now, last_ended=at, unknown_until=max(recently.unknown_until, earlier))


class Running:
    """The attempts that run in this process now. Only one thread enters and leaves them."""

    def __init__(self) -> None:
        self._now: list[Fields] = []
        self._recently = Recently()
        #: Set by a process whose output is captured.
        self.shared: SharedMemory | None = None

    def enter(self, fields: Fields) -> None:
        """Note that the attempt runs."""
        self._now.append(fields)
        match len(self._now):
            case 1:
                self._write(msgspec.structs.replace(self._recently, now=fields))
            case 2:
                self._write(Recently(unknown_until=_NEVER))

    def leave(self, fields: Fields) -> None:
        """Note that the attempt has ended."""
        self._now.remove(fields)
        match len(self._now):
            case 0:
                at = time.monotonic()
                self._recently = _ended(self._recently, at)
                if self.shared is not None:
                    self.shared.end(at)
            case 1:
                self._write(Recently(now=self._now[0], unknown_until=time.monotonic()))

    def only(self) -> dict[str, Any]:
        """Return the only running attempt. Empty when there is none, or more than one."""
        return dict(self._recently.now or {})

    def after_fork(self) -> None:
        """Make a forked child independent of the process that it was forked from."""
        self.shared = None

    def _write(self, recently: Recently) -> None:
        self._recently = recently
        if self.shared is not None:
            self.shared.write(recently)


RUNNING: Final = Running()
#: The attempt whose code runs in this context; empty outside of attempts.
ATTEMPT: Final[ContextVar[Fields]] = ContextVar("attempt", default={})  # noqa: B039  # never changed
os.register_at_fork(after_in_child=RUNNING.after_fork)
