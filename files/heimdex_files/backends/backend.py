"""What a backend does. Everything blocks, and may be called by several threads at once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from heimdex_files.source import Measured
from heimdex_files.stored import Listed, Stored

#: Describes what a source has yielded, given the name of the object that got it.
Describe = Callable[[str], Stored]


class Bytes(Protocol):
    """The open bytes of one file."""

    def read(self, start: int, length: int) -> bytes | memoryview:
        """Return up to `length` bytes from `start`; none at the end. Raises NotFound, Unavailable."""

    def close(self) -> None:
        """Give back what was opened. No call may follow."""


class Backend(Protocol):
    """A place for files. Keys are checked by the caller. Every method raises Unavailable where the place is not there.

    name: the folder or the bucket, for people. may_be_unmounted: the place may be replaced by an empty one while this
    process runs.
    """

    name: str
    may_be_unmounted: bool

    def create(self, key: str, source: Measured, describe: Describe) -> Stored:
        """Store the source, or nothing of it. Raises AlreadyThere, Full, and what the source raises."""

    def describe(self, key: str) -> Stored | None:
        """Return the description of a file; None if there is none. Raises Damaged."""

    def open(self, key: str, stored: Stored, start: int) -> Bytes:
        """Open the bytes of a file, to read first from `start`. Raises NotFound, Damaged."""

    def delete(self, keys: Sequence[str]) -> None:
        """Remove these keys and everything below them. A key that does not exist is ignored."""

    def list(self, prefix: str, after: str | None) -> Iterator[Listed]:
        """Yield the keys below a prefix ("": all), in the order of their bytes with a slash at the end."""

    def is_empty(self) -> bool:
        """Whether nothing at all is stored, not even an object that this package did not make."""

    def sweep(self, older_than_seconds: float, now: float) -> int:
        """Remove the leftovers of writers that were killed so long ago. Returns their number."""
