"""The file store for event loops: `FileStore`. Its `blocking` twin is for functions of stages, which run in threads.

Both share one implementation, which blocks; here it runs in threads of its own. So a disk that hangs costs threads, and
no call waits for ever: without an answer in time it raises Unavailable, and the thread goes on until the disk answers.
"""

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from heimdex_files.blocking import BlockingFileStore, StoredFile
from heimdex_files.errors import Unavailable
from heimdex_files.source import PIECE_BYTES
from heimdex_files.stored import Listed, Stored
from heimdex_files.url import backend_of

#: Seconds in which the store must answer a call, or take the next piece of a file.
ANSWER_SECONDS: Final = 60.0
#: Seconds for the end of a create: the last bytes are written to the disk, or the last parts sent.
FINISH_SECONDS: Final = 300.0
#: Seconds for which a cancelled create waits until nothing is left of it.
_UNDO_SECONDS: Final = 10.0
#: A create keeps its thread while its bytes arrive; other calls only while they are answered.
MAX_CREATES: Final = 256
MAX_CALLS: Final = 64
#: Pieces of one create that wait for the disk.
_PIECES_AHEAD: Final = 2
_END: Final = b""

_T = TypeVar("_T")


class FileStore:
    """Stores, reads, lists and deletes files, for an event loop. `blocking` is the same store for threads.

    The errors of each method are those of BlockingFileStore. Close it after use.
    """

    def __init__(self, blocking: BlockingFileStore) -> None:
        self.blocking = blocking
        self._creates = ThreadPoolExecutor(MAX_CREATES, thread_name_prefix="files-create")
        self._calls = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="files")

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Open the store of HEIMDEX_FILES_URL. It is not asked for anything yet. Raises SettingsError."""
        return cls(BlockingFileStore(backend_of(url)))

    @property
    def name(self) -> str:
        """The folder or the bucket, for error messages."""
        return self.blocking.name

    async def create(
        self,
        key: str,
        source: bytes | Path | AsyncIterable[bytes],
        *,
        content_type: str,
        name: str | None = None,
        size: int | None = None,
        limit: int | None = None,
    ) -> Stored:
        """Store a file durably, or nothing of it: as BlockingFileStore.create. Chunks come from an async iterable.

        When this is cancelled, or the iterable raises, nothing is left of the file.
        """
        loop = asyncio.get_running_loop()
        feed = None if isinstance(source, (bytes, Path)) else _Feed(loop)
        abandoned = threading.Event()
        create = partial(
            self.blocking.create,
            key,
            source if feed is None else feed,  # type: ignore[arg-type]
            content_type=content_type,
            name=name,
            size=size,
            limit=limit,
            abandoned=abandoned,
        )
        creating = loop.run_in_executor(self._creates, create)
        try:
            if feed is not None:
                creating.add_done_callback(feed.stop)
                await _until_first(feed.pass_on(source), creating)  # type: ignore[arg-type]
            timeout = None if isinstance(source, Path) else FINISH_SECONDS
            if not (await asyncio.wait({creating}, timeout=timeout))[0]:
                raise Unavailable(self._late(FINISH_SECONDS))
        except BaseException:
            abandoned.set()
            if feed is not None:
                feed.end()
            creating.add_done_callback(_ignored)
            await asyncio.wait({creating}, timeout=_UNDO_SECONDS)
            raise
        return creating.result()

    async def head(self, key: str) -> Stored:
        """Return what is known of a file."""
        return await self.run(self.blocking.head, key)

    async def open(self, key: str, start: int = 0, end: int | None = None) -> "Download":
        """Open a file, or its bytes from `start` up to `end`, as an async iterator over its chunks."""
        return Download(self, await self.run(self.blocking.open, key, start, end))

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete files, or all files below a prefix. A key at a time, however long each takes."""
        for key in keys:
            await self.run(self.blocking.delete, [key], timeout=FINISH_SECONDS)

    async def list(self, prefix: str = "", after: str | None = None, limit: int = 1_000) -> list[Listed]:
        """Return a page of the keys below a prefix, in order. `after`: the last key of the page before."""
        return await self.run(lambda: list(self.blocking.list(prefix, after, limit)))

    async def sweep(self) -> int:
        """Remove what killed writers left among the temporaries, after a day. Returns how many."""
        return await self.run(self.blocking.sweep, timeout=FINISH_SECONDS)

    async def run(self, function: Callable[..., _T], *args: Any, timeout: float = ANSWER_SECONDS) -> _T:
        """Call a blocking function of the store in a thread. Raises Unavailable after `timeout` seconds."""
        call = asyncio.get_running_loop().run_in_executor(self._calls, partial(function, *args))
        try:
            done, _ = await asyncio.wait({call}, timeout=timeout)
        except asyncio.CancelledError:
            call.add_done_callback(_ignored)
            raise
        if not done:
            call.add_done_callback(_ignored)
            raise Unavailable(self._late(timeout))
        return call.result()

    async def close(self) -> None:
        """Take no more calls. Those that are under way end by themselves: nothing waits here for a disk that hangs."""
        for executor in (self._creates, self._calls):
            executor.shutdown(wait=False, cancel_futures=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _late(self, seconds: float) -> str:
        name = self.name
        return f"{name[0].upper()}{name[1:]} did not answer within {seconds:g} s: check the disk, or the server."


class Download:
    """The chunks of a file, or of a range of it, each of at most 1 MiB. `stored` describes the whole file.

    Close it after use: `async with await store.open(key) as download: async for chunk in download: ...`
    """

    def __init__(self, store: FileStore, file: StoredFile) -> None:
        self._store = store
        self._file = file
        self.stored = file.stored

    def __len__(self) -> int:
        return len(self._file)

    def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes | memoryview]:
        while chunk := await self._store.run(self._file.chunk):
            yield chunk

    async def close(self) -> None:
        """Close the file. A read that hangs closes it when it ends."""
        with suppress(Unavailable):
            await self._store.run(self._file.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Feed:
    """Passes chunks from the event loop to the thread that stores them, which iterates over it.

    It holds two pieces at most: `pass_on` waits for the thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pieces: SimpleQueue[bytes] = SimpleQueue()
        self._room = asyncio.Semaphore(_PIECES_AHEAD)
        self._is_stopped = False

    async def pass_on(self, source: AsyncIterable[bytes]) -> None:
        """Pass a whole source on, or what the thread takes of it. Raises what the source raises, and Unavailable."""
        waiting: list[bytes] = []
        size = 0
        async for chunk in source:
            if chunk:
                waiting.append(bytes(chunk))
                size += len(chunk)
            if size >= PIECE_BYTES:
                await self._put(b"".join(waiting))
                waiting, size = [], 0
            if self._is_stopped:
                return
        if waiting:
            await self._put(b"".join(waiting))
        self.end()

    def end(self) -> None:
        """Let the thread go on, which has everything, or which gives up because the create was abandoned."""
        self._pieces.put(_END)

    def stop(self, _: "asyncio.Future[Any]") -> None:
        """Stop waiting for the thread: it has ended."""
        self._is_stopped = True
        self._room.release()

    async def _put(self, piece: bytes) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._room.acquire()
        except TimeoutError:
            raise Unavailable(
                f"The store of files took nothing for {ANSWER_SECONDS:g} s: check the disk, or the server."
            ) from None
        self._pieces.put(piece)

    def __iter__(self) -> Iterator[bytes]:
        while (piece := self._pieces.get()) is not _END:
            yield piece
            self._loop.call_soon_threadsafe(self._room.release)


async def _until_first(passing: Coroutine[Any, Any, None], creating: "asyncio.Future[Any]") -> None:
    """Pass a source on until it ends, or until the create has failed, whatever the source then still does."""
    task = asyncio.ensure_future(passing)
    try:
        await asyncio.wait({task, creating}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if not task.cancelled():
        task.result()


def _ignored(call: "asyncio.Future[Any]") -> None:
    """Take the result of a call whose caller has gone, so that asyncio does not report its error as forgotten."""
    if not call.cancelled():
        call.exception()
