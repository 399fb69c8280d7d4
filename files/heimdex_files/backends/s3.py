"""Files in a bucket, through obstore.

The bytes go to an object with a random name below the key, then `about.json`, which names it, is created on the
condition that none is there. So the creation is atomic and never overwrites, whatever the size: a multipart upload
itself takes no condition. What a killed process leaves is an object without a description, which `list` yields and
`delete` removes, or parts of a multipart upload, which only a lifecycle rule of the bucket removes
(AbortIncompleteMultipartUpload); an upload that fails is aborted.

Bytes are read in one request, which lasts as long as its reader is slow. Where the server cuts it, the next one goes on
at that byte; only a request that brings nothing, again and again, is an error.
"""

import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import chain, groupby
from typing import Any, Final

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from heimdex_files import stored as layout
from heimdex_files.backends.backend import Describe
from heimdex_files.errors import AlreadyThere, Damaged, Full, NotFound, Unavailable
from heimdex_files.source import Measured
from heimdex_files.stored import ABOUT, CHUNK_BYTES, Listed, Stored

#: The size of a part. S3 allows 10,000 parts of at least 5 MiB each.
PART_BYTES: Final = 8 * 1024 * 1024
_MAX_PARTS: Final = 9_000
#: Parts of one upload that are on their way at a time.
PARTS_AT_ONCE: Final = 3
#: How often a read goes on after the server cut it, without a byte in between.
_REOPENINGS: Final = 3
#: Keys in one deletion, the most that S3 takes.
_DELETIONS: Final = 1_000

#: What servers answer when they have no room: AWS never, MinIO, Ceph and others these.
_FULL: Final = re.compile(
    r"507 Insufficient Storage|StorageFull|QuotaExceeded|InsufficientStorage|InsufficientCapacity|OutOfCapacity"
)
_STATUS: Final = re.compile(r"status code: (\d{3}[^:<\n]*)")
_CODE: Final = re.compile(r"<Code>([A-Za-z0-9]+)</Code>")
#: A server without conditional writes.
_UNCONDITIONAL: Final = re.compile(r"501 Not Implemented|NotImplemented")


def connect(bucket: str, prefix: str, *, endpoint: str | None, region: str, allow_http: bool) -> S3Store:
    """Return a client of a bucket. It makes no request; AWS_* variables give what the arguments do not.

    A request that fails is repeated for at most 20 s, so that a bucket that is not there is known in reasonable time.
    """
    return S3Store(
        bucket,
        prefix=prefix or None,
        config={"region": region, "endpoint": endpoint} if endpoint else {"region": region},
        client_options={
            "allow_http": allow_http,
            "connect_timeout": timedelta(seconds=5),
            # A server that is silent for so long is not there. A request as a whole may take as long as its reader.
            "read_timeout": timedelta(seconds=45),
            "timeout": timedelta(days=1),
        },
        retry_config={
            "max_retries": 4,
            "retry_timeout": timedelta(seconds=20),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=3),
                "base": 2,
            },
        },
    )


class Bucket:
    """A backend in a bucket, below a prefix of it."""

    may_be_unmounted = False

    def __init__(self, store: S3Store, name: str) -> None:
        self.name = f"the bucket {name}"
        self._store = store
        self._bucket = name.partition("/")[0]

    def create(self, key: str, source: Measured, describe: Describe) -> Stored:
        """Store the source, or nothing of it. See Backend.create."""
        if self._text(f"{key}/{ABOUT}") is not None:
            raise _already_there(key)
        name = secrets.token_hex(16)
        path = f"{key}/{name}"
        try:
            self._upload(path, source)
            file = describe(name)
            self._create_text(f"{key}/{ABOUT}", layout.encode(file), key)
        except BaseException:
            # An error may also hide that the server has stored the object.
            self._remove_quietly(path)
            raise
        return file

    def describe(self, key: str) -> Stored | None:
        """Return the description of a file; None if there is none. See Backend.describe."""
        text = self._text(f"{key}/{ABOUT}")
        return None if text is None else layout.decode(text, key)

    def open(self, key: str, stored: Stored, start: int) -> "_OpenObject":
        """Open the bytes of a file. See Backend.open."""
        return _OpenObject(self, key, stored, start)

    def stream(self, key: str, stored: Stored, start: int) -> Iterator[memoryview]:
        """Request the bytes of a file from `start`, and return an iterator over them. Raises NotFound, Damaged.

        The iterator raises what obstore raises.
        """
        path = f"{key}/{stored.data}"
        with self._in_words(f"read {key!r}"):
            try:
                if start >= stored.bytes:
                    size, chunks = obstore.head(self._store, path)["size"], None
                else:
                    result = obstore.get(self._store, path, options={"range": {"offset": start}})
                    size, chunks = result.meta["size"], result.stream(min_chunk_size=CHUNK_BYTES)
            except FileNotFoundError as error:
                self._check_bucket(error)
                raise NotFound(f"The bytes of the file {key!r} are gone: restore them from a backup.") from None
        if size != stored.bytes:
            raise Damaged(
                f"The file {key!r} has {size:,} bytes, but {stored.bytes:,} were stored: restore it from a backup."
            )
        return map(memoryview, chunks or ())

    def delete(self, keys: Sequence[str]) -> None:
        """Remove these keys and everything below them, the descriptions first. See Backend.delete."""
        with self._in_words("delete files"):
            for key in keys:
                paths = [each["path"] for page in obstore.list(self._store, key, chunk_size=1000) for each in page]
                paths.sort(key=lambda path: not path.endswith(f"/{ABOUT}"))
                for first in range(0, len(paths), _DELETIONS):
                    obstore.delete(self._store, paths[first : first + _DELETIONS])

    def list(self, prefix: str, after: str | None) -> Iterator[Listed]:
        """Yield the keys below a prefix. See Backend.list."""
        with self._in_words("list files"):
            # "0" is the character after "/": what begins with "<after>/" is passed over.
            offset = None if after is None else f"{after}0"
            pages = obstore.list(self._store, prefix or None, offset=offset, chunk_size=1000)
            objects = (each for page in pages for each in page)
            for key, group in groupby(objects, key=lambda each: each["path"].rpartition("/")[0]):
                if not key:
                    continue
                size, changed_at, is_whole = 0, 0.0, False
                for each in group:
                    size += each["size"]
                    changed_at = max(changed_at, each["last_modified"].timestamp())
                    is_whole |= each["path"].endswith(f"/{ABOUT}")
                yield Listed(key, changed_at, size, is_whole)

    def is_empty(self) -> bool:
        """Whether the prefix holds nothing. See Backend.is_empty."""
        with self._in_words("list files"):
            return next(iter(obstore.list(self._store, chunk_size=1)), None) is None

    def sweep(self, older_than_seconds: float, now: float) -> int:
        """Do nothing: parts of unfinished uploads are removed by the bucket's lifecycle rule. See Backend.sweep."""
        return 0

    def _upload(self, path: str, source: Measured) -> None:
        """Upload the source: what fits into a part in one request. An error of the source is raised as it is."""
        pieces = iter(source)
        begin: list[bytes] = []
        size = 0
        for piece in pieces:
            begin.append(bytes(piece))
            size += len(piece)
            if size >= PART_BYTES:
                break
        whole = size < PART_BYTES
        part_bytes = max(PART_BYTES, (source.expected_bytes or 0) // _MAX_PARTS + 1)
        try:
            with self._in_words("store a file"):
                if whole:
                    obstore.put(self._store, path, b"".join(begin), use_multipart=False)
                else:
                    obstore.put(
                        self._store,
                        path,
                        chain(_emptied(begin), pieces),
                        use_multipart=True,
                        chunk_size=part_bytes,
                        max_concurrency=PARTS_AT_ONCE,
                    )
        except Exception:
            if source.failure is not None:  # obstore has aborted the upload
                raise source.failure from None
            raise

    def _text(self, path: str) -> bytes | None:
        """Return a small object; None if it is not there."""
        with self._in_words("read a file's description"):
            try:
                return bytes(obstore.get(self._store, path).bytes())
            except FileNotFoundError as error:
                self._check_bucket(error)
                return None

    def _create_text(self, path: str, text: bytes, key: str) -> None:
        with self._in_words("store a file's description"):
            try:
                obstore.put(self._store, path, text, mode="create")
            except AlreadyExistsError:
                # A request whose answer was lost is repeated, and then meets its own object.
                if self._text(path) != text:
                    raise _already_there(key) from None
            except (NotSupportedError, BaseError) as error:
                if not isinstance(error, NotSupportedError) and not _UNCONDITIONAL.search(str(error)):
                    raise
                # Keys have a random token, so the check alone is as good where a server has no conditional writes.
                if self._text(path) is not None:
                    raise _already_there(key) from None
                obstore.put(self._store, path, text)

    def _remove_quietly(self, path: str) -> None:
        # An object that stays has no description, so nobody sees it, and the clean-up removes it.
        with suppress(BaseError, OSError):
            obstore.delete(self._store, path)

    @contextmanager
    def _in_words(self, what: str) -> Iterator[None]:
        """Turn what obstore raises into Full or Unavailable. `what`: completes "cannot ..."."""
        try:
            yield
        except (BaseError, OSError, TimeoutError) as error:
            raise self.in_words(error, what) from error

    def in_words(self, error: Exception, what: str) -> Unavailable:
        """Return what obstore raised as Full or Unavailable. `what`: completes "cannot ..."."""
        text = str(error)
        begin = f"Cannot {what} in {self.name}: "
        if _FULL.search(text):
            return Full(f"{begin}the server has no room left. Free some, or raise the quota of the bucket.")
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
            return Unavailable(
                f"{begin}the server refuses these credentials{_answer(text)}. Check AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY and what they may do in the bucket."
            )
        if isinstance(error, FileNotFoundError) or "NoSuchBucket" in text:
            return Unavailable(f"{begin}the bucket does not exist. Create it, or correct HEIMDEX_FILES_URL.")
        if answer := _answer(text):
            return Unavailable(f"{begin}the server refused{answer}. Check the server, or try again later.")
        return Unavailable(
            f"{begin}the server did not answer ({_reason(text)}). Check that it runs, and the endpoint in "
            "HEIMDEX_FILES_URL."
        )

    def _check_bucket(self, error: FileNotFoundError) -> None:
        """Raise the error again if it is the bucket that is missing and not the object."""
        if "NoSuchKey" not in str(error) and "NoSuchBucket" in str(error):
            raise error


class _OpenObject:
    """The bytes of a file in a bucket. Reading on costs nothing, reading elsewhere a new request."""

    def __init__(self, bucket: Bucket, key: str, stored: Stored, start: int) -> None:
        self._bucket = bucket
        self._key = key
        self._stored = stored
        self._position = start
        self._rest = memoryview(b"")
        self._chunks = bucket.stream(key, stored, start)

    def read(self, start: int, length: int) -> memoryview:
        """Return up to `length` bytes from `start`. See Bytes.read."""
        if start >= self._stored.bytes:
            return memoryview(b"")
        if start != self._position:
            self._begin(start)
        if not self._rest:
            self._rest = self._next_chunk()
        part, self._rest = self._rest[:length], self._rest[length:]
        self._position += len(part)
        return part

    def close(self) -> None:
        """Drop the request."""
        self._chunks, self._rest = iter(()), memoryview(b"")

    def _begin(self, start: int) -> None:
        self._rest = memoryview(b"")
        self._chunks = self._bucket.stream(self._key, self._stored, start)
        self._position = start

    def _next_chunk(self) -> memoryview:
        """Return the next bytes; none if the object has no more."""
        for reopening in range(_REOPENINGS + 1):
            try:
                return next(self._chunks, memoryview(b""))
            except (BaseError, OSError) as error:
                if reopening == _REOPENINGS:
                    raise self._bucket.in_words(error, f"read {self._key!r}") from error
            self._begin(self._position)
        raise AssertionError("the last reopening raises")


def _emptied(pieces: list[bytes]) -> Iterator[bytes]:
    """Yield the pieces and forget them, so that they do not stay in memory for the whole upload."""
    pieces.reverse()
    while pieces:
        yield pieces.pop()


def _already_there(key: str) -> AlreadyThere:
    return AlreadyThere(f"The file {key!r} exists already, and files are never overwritten: use another key.")


def _answer(text: str) -> str:
    """Return the status and S3's error code in an error of obstore, in brackets; "" if there was no answer."""
    status, code = _STATUS.search(text), _CODE.search(text)
    parts = [match[1].strip() for match in (status, code) if match]
    return f" ({', '.join(parts)})" if parts else ""


def _reason(text: str) -> str:
    """Return the innermost reason in an error of obstore, in a few words."""
    reasons: list[Any] = re.findall(r'"([^"\n]{3,80})"', text.partition("Debug source:")[2])
    return reasons[-1] if reasons else text.splitlines()[0][-120:]
