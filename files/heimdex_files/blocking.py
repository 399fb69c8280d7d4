"""The file store for code in threads. `FileStore` in store.py is the same for event loops; both share this code."""

import contextlib
import io
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final

from heimdex_files.backends.backend import Backend, Bytes
from heimdex_files.errors import Damaged, ForeignStore, InvalidName, NotFound
from heimdex_files.names import check_key, check_name
from heimdex_files.source import Measured, Source
from heimdex_files.stored import CHUNK_BYTES, Listed, Stored

#: The key of the marker with the installation's id. No tenant has a name that begins with a dot.
MARKER: Final = ".installation"
MAX_MARKER_BYTES: Final = 1_000
#: RFC 6838 allows 127 characters on each side of the slash, and parameters follow.
MAX_CONTENT_TYPE: Final = 1_000
#: Seconds since its last write after which a temporary belongs to a writer that was killed.
TEMPORARY_SECONDS: Final = 24 * 3600.0


class BlockingFileStore:
    """Stores, reads, lists and deletes files. Every method blocks, and may be called by several threads at once.

    All raise Unavailable where the store cannot be asked, and InvalidName for a key that breaks the rules.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        #: The id of the installation whose marker was seen (installation.py). Once it is known, every miss and every
        #: create in a folder checks that the marker is still there: where a volume is unmounted, its empty folder
        #: answers "not found" for every file.
        self.installation: str | None = None

    @property
    def name(self) -> str:
        """The folder or the bucket, for error messages."""
        return self._backend.name

    def create(
        self,
        key: str,
        source: Source,
        *,
        content_type: str,
        name: str | None = None,
        size: int | None = None,
        limit: int | None = None,
        abandoned: threading.Event | None = None,
    ) -> Stored:
        """Store a file durably, or nothing of it. The source is bytes, a path, or chunks, which are read once.

        name: what people call the file; the last part of the key by default. size: the bytes that the source
        announced. limit: the bytes that are allowed. abandoned: set by another thread to give up. The memory that this
        takes does not depend on the file's size.

        Raises AlreadyThere, TooLarge, WrongSize, Abandoned, Full, ForeignStore, and what the source raises.
        """
        check_key(key)
        name = check_name(key.rpartition("/")[2] if name is None else name)
        _check_content_type(content_type)
        measured = Measured(source, size=size, limit=limit, abandoned=abandoned)
        if key != MARKER and self._backend.may_be_unmounted:
            self.check_marker()

        def describe(data: str) -> Stored:
            return Stored(
                name=name,
                content_type=content_type,
                bytes=measured.bytes,
                sha256=measured.sha256,
                created_at=time.time(),
                data=data,
            )

        return self._backend.create(key, measured, describe)

    def head(self, key: str) -> Stored:
        """Return what is known of a file. Raises NotFound, Damaged, ForeignStore."""
        stored = self._backend.describe(check_key(key))
        if stored is None:
            raise self._miss(key)
        return stored

    def open(self, key: str, start: int = 0, end: int | None = None) -> "StoredFile":
        """Open a file, or its bytes from `start` up to, not including, `end`, for reading. Close it after use.

        `end` may be beyond the end. Raises NotFound, Damaged, ForeignStore; reading raises Unavailable.
        """
        stored = self.head(key)
        end = stored.bytes if end is None else min(end, stored.bytes)
        start = max(0, min(start, end))
        try:
            opened = self._backend.open(key, stored, start)
        except NotFound:
            self.check_marker()
            raise
        return StoredFile(opened, stored, start, end)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete files, or all files below a prefix: a key stands for itself and everything below it.

        A key that does not exist is ignored. An interrupted call is repeated by calling it again.
        """
        self._backend.delete([check_key(key) for key in keys])

    def list(self, prefix: str = "", after: str | None = None, limit: int | None = None) -> Iterator[Listed]:
        """Yield the keys below a prefix, such as `<tenant>/<job_id>`, without the store's marker.

        after: the last key of the page before. limit: the most keys that are yielded.
        """
        if prefix:
            check_key(prefix)
        count = 0
        for listed in self._backend.list(prefix, after):
            if listed.key == MARKER:
                continue
            if limit is not None and count >= limit:
                return
            count += 1
            yield listed

    def is_empty(self) -> bool:
        """Whether nothing at all is stored: no file, no marker, nothing that another program made."""
        return self._backend.is_empty()

    def sweep(self, older_than_seconds: float = TEMPORARY_SECONDS, now: float | None = None) -> int:
        """Remove what killed writers left among the temporaries, after a day. Returns how many."""
        return self._backend.sweep(older_than_seconds, time.time() if now is None else now)

    def marker(self) -> str | None:
        """Return the installation id in the store's marker; None if the store has none.

        Raises ForeignStore for a marker that cannot be read: a lost marker is never a lost file.
        """
        try:
            stored = self._backend.describe(MARKER)
            if stored is None:
                return None
            with contextlib.closing(self._backend.open(MARKER, stored, 0)) as opened:
                return bytes(opened.read(0, MAX_MARKER_BYTES)).decode(errors="replace")
        except NotFound as error:
            raise ForeignStore(
                f"The marker of {self.name} cannot be read, so nobody knows whose files these are: {error}"
            ) from None

    def check_marker(self) -> None:
        """Raise ForeignStore unless the marker is still that of `installation`; do nothing before that is known."""
        if self.installation is None or (marker := self.marker()) == self.installation:
            return
        raise ForeignStore(
            f"{self.name[0].upper()}{self.name[1:]} "
            + (
                f"now has no marker of installation {self.installation}: mount its volume again."
                if marker is None
                else f"belongs to installation {marker}, and not to {self.installation} any more: "
                "correct HEIMDEX_FILES_URL."
            )
        )

    def _miss(self, key: str) -> NotFound:
        self.check_marker()
        return NotFound(f"The file {key!r} is not in {self.name}: restore it from a backup, or make it again.")


class StoredFile(io.RawIOBase):
    """A stored file, or a range of it, as a readable binary file. `stored` describes the whole file.

    A thread may close it while another reads.
    """

    def __init__(self, opened: Bytes, stored: Stored, start: int, end: int) -> None:
        super().__init__()
        self._opened = opened
        self.stored = stored
        self._start = start
        self._end = end
        self._position = start
        # The descriptor of a closed file may be another file's: a read that has not begun must not use it.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._end - self._start

    def chunk(self) -> bytes | memoryview:
        """Return the next chunk, of at most 1 MiB; none at the end. Raises NotFound, Damaged, Unavailable."""
        return self._next(CHUNK_BYTES)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield the rest in chunks of at most 1 MiB."""
        while chunk := self.chunk():
            yield chunk

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as one read of the store does, and return the number of bytes; 0 at the end."""
        target = memoryview(buffer).cast("B")
        chunk = self._next(len(target))
        target[: len(chunk)] = chunk
        return len(chunk)

    def readall(self) -> bytes:
        """Return the rest."""
        return b"".join(bytes(chunk) for chunk in self.chunks())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, which counts from the begin of the range, and return it."""
        self._check_open()
        base = {io.SEEK_SET: self._start, io.SEEK_CUR: self._position, io.SEEK_END: self._end}[whence]
        if base + offset < self._start:
            raise ValueError("the position is before the begin of the file")
        self._position = base + offset
        return self._position - self._start

    def tell(self) -> int:
        """Return the position in the range."""
        return self._position - self._start

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if not self.closed:
                self._opened.close()
            super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")

    def _next(self, length: int) -> bytes | memoryview:
        with self._lock:
            self._check_open()
            length = min(length, self._end - self._position)
            if length <= 0:
                return b""
            chunk = self._opened.read(self._position, length)
            if not chunk:
                raise Damaged(
                    f"The file {self.stored.name!r} ended at byte {self._position:,} of {self.stored.bytes:,} "
                    "while it was read: restore it from a backup."
                )
            self._position += len(chunk)
            return chunk


def _check_content_type(content_type: str) -> None:
    if not 1 <= len(content_type) <= MAX_CONTENT_TYPE or not content_type.isascii() or not content_type.isprintable():
        raise InvalidName(f"A content type must be 1 to {MAX_CONTENT_TYPE} printable ASCII characters.")
