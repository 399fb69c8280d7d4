"""Measures what flows into the store: counts, hashes and limits the bytes of a source, in pieces of one size."""

import hashlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from heimdex_files.errors import Abandoned, TooLarge, WrongSize

#: The bytes that are written at a time. A service holds about five of them per file that it stores; larger ones save no
#: time, and cost memory when 32 files arrive at once.
PIECE_BYTES: Final = 256 * 1024

Source = bytes | bytearray | memoryview | Path | Iterable[bytes]


class Measured:
    """Iterates over a source once. `bytes` and `sha256` are those of what has passed so far.

    size: what the source announced; limit: what the caller allows; None: anything. abandoned: set when the caller
    gives up. While it is iterated, raises WrongSize, TooLarge or Abandoned as soon as one of them applies, and what the
    source itself raises. That error is also in `failure`: a library through which the bytes pass may wrap it.
    """

    def __init__(
        self,
        source: Source,
        *,
        size: int | None = None,
        limit: int | None = None,
        abandoned: threading.Event | None = None,
    ) -> None:
        self.bytes = 0
        self.failure: BaseException | None = None
        self._source = source
        self._size = size
        self._limit = limit
        self._abandoned = abandoned
        self._hash = hashlib.sha256()
        if size is not None and limit is not None and size > limit:
            raise _too_large(limit)

    @property
    def sha256(self) -> str:
        """The SHA-256 of what has passed, in hexadecimal."""
        return self._hash.hexdigest()

    @property
    def expected_bytes(self) -> int | None:
        """The size of the source where it is known before it is read."""
        if isinstance(self._source, (bytes, bytearray, memoryview)):
            return len(self._source)
        if isinstance(self._source, Path):
            return self._source.stat().st_size
        return self._size

    def __iter__(self) -> Iterator[bytes | memoryview]:
        try:
            for piece in _pieces(self._source):
                self._check_abandoned()
                self.bytes += len(piece)
                if self._limit is not None and self.bytes > self._limit:
                    raise _too_large(self._limit)
                if self._size is not None and self.bytes > self._size:
                    raise WrongSize(f"More bytes came than the {self._size:,} that were announced: send it again.")
                self._hash.update(piece)
                yield piece
            self._check_abandoned()  # otherwise a source that was cut off would count as whole
            if self._size is not None and self.bytes < self._size:
                raise WrongSize(
                    f"Only {self.bytes:,} of the {self._size:,} bytes that were announced came: send it again."
                )
        except GeneratorExit:
            raise
        except BaseException as error:
            self.failure = error
            raise

    def _check_abandoned(self) -> None:
        if self._abandoned is not None and self._abandoned.is_set():
            raise Abandoned("The caller gave up, so nothing was stored.")


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The file has more than the {limit:,} bytes that are allowed.")


def _pieces(source: Source) -> Iterator[bytes | memoryview]:
    if isinstance(source, Path):
        with source.open("rb", buffering=0) as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
    elif isinstance(source, (bytes, bytearray, memoryview)):
        whole = memoryview(source).cast("B")
        for start in range(0, len(whole), PIECE_BYTES):
            yield whole[start : start + PIECE_BYTES]
    else:
        yield from joined(source)


def joined(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Join small chunks until they have PIECE_BYTES; a network delivers them in a few KiB."""
    waiting: list[bytes] = []
    size = 0
    for chunk in chunks:
        if chunk:
            waiting.append(chunk)
            size += len(chunk)
        if size >= PIECE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
