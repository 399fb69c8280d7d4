"""What every store holds, on a folder as in S3."""

import asyncio
import hashlib
import io
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from heimdex_files.errors import Abandoned, AlreadyThere, InvalidName, NotFound, TooLarge, WrongSize
from heimdex_files.names import file_key, new_token
from heimdex_files.store import FileStore
from tests.integration.files.conftest import NothingLeft

JOB = "01890a5d-ac96-774b-bcce-b302099a8057"
MIB = 1024 * 1024
#: More than a part of a multipart upload, and no whole number of pieces.
LARGE = 9 * MIB + 12_345


def key(name: str = "poster.jpg", job_id: str = JOB) -> str:
    return file_key("acme", job_id, 1, "extracting", 0, new_token(), name)


async def chunks(content: bytes, size: int = 64 * 1024) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]
        await asyncio.sleep(0)


async def read(store: FileStore, at: str, start: int = 0, end: int | None = None) -> bytes:
    async with await store.open(at, start, end) as download:
        return b"".join([bytes(chunk) async for chunk in download])


async def listed(store: FileStore, prefix: str = "") -> list[str]:
    return [each.key for each in await store.list(prefix)]


@pytest.mark.parametrize("size", [0, 1, MIB, LARGE])
async def test_what_goes_in_comes_out(store: FileStore, size: int, scratch: Path) -> None:
    content = os.urandom(size)
    path = scratch / "source"
    path.write_bytes(content)
    for source in (content, path, chunks(content)):
        at = key()
        stored = await store.create(at, source, content_type="image/jpeg")
        assert (stored.name, stored.content_type, stored.bytes) == ("poster.jpg", "image/jpeg", size)
        assert stored.sha256 == hashlib.sha256(content).hexdigest()
        assert await store.head(at) == stored
        assert await read(store, at) == content
    assert len(await store.list(f"acme/{JOB}")) == 3


async def test_ranges(store: FileStore) -> None:
    content = os.urandom(LARGE)
    at = key()
    await store.create(at, content, content_type="video/mp4")
    for start, end in (
        (0, 1),
        (5, 4 * MIB + 7),
        (LARGE - 1, None),
        (LARGE - 10, LARGE + 10),
        (LARGE, None),
        (3, 3),
        (9, 2),
    ):
        async with await store.open(at, start, end) as download:
            part = b"".join([bytes(chunk) async for chunk in download])
        assert part == content[start:end]
        assert len(download) == len(part)


async def test_a_stage_reads_a_binary_file(store: FileStore) -> None:
    content = os.urandom(LARGE)
    at = key()
    blocking = store.blocking

    def stage() -> None:
        blocking.create(at, iter([content[:100], content[100:]]), content_type="video/mp4")
        with io.BufferedReader(blocking.open(at)) as file:  # type: ignore[type-var]
            assert file.read(10) == content[:10]
            assert file.seek(-5, io.SEEK_END) == LARGE - 5
            assert file.read() == content[-5:]
            assert file.seek(5 * MIB) == 5 * MIB
            assert file.read(MIB) == content[5 * MIB : 6 * MIB]
            file.seek(0)
            assert file.read() == content
        with blocking.open(at, 100, 200) as part:
            assert part.read() == content[100:200]
            assert part.seek(10) == 10
            assert part.tell() == 10
            assert part.read(5) == content[110:115]
        with pytest.raises(ValueError, match="closed"):
            part.read(1)

    await asyncio.to_thread(stage)


@pytest.mark.parametrize("size", [10, LARGE])
async def test_a_file_is_never_overwritten(store: FileStore, size: int) -> None:
    at = key()
    first = await store.create(at, b"x" * size, content_type="text/plain")
    with pytest.raises(AlreadyThere):
        await store.create(at, b"y" * size, content_type="text/html")
    assert await store.head(at) == first
    assert await read(store, at) == b"x" * size


@pytest.mark.parametrize("size", [10, LARGE])
async def test_of_many_creates_of_one_key_one_wins(store: FileStore, size: int) -> None:
    at = key()
    contents = [bytes([number]) * size for number in range(6)]
    results = await asyncio.gather(
        *(store.create(at, chunks(each), content_type="text/plain") for each in contents), return_exceptions=True
    )
    winners = [each for each, result in zip(contents, results, strict=True) if not isinstance(result, BaseException)]
    assert len(winners) == 1
    assert all(isinstance(result, AlreadyThere) for result in results if isinstance(result, BaseException))
    assert await read(store, at) == winners[0]
    [entry] = await store.list()
    assert entry.key == at
    assert entry.bytes < size + 1_000  # the bytes of the others are gone


@pytest.mark.parametrize("size", [10, LARGE])
async def test_a_source_that_fails_leaves_nothing(store: FileStore, nothing_left: NothingLeft, size: int) -> None:
    async def broken() -> AsyncIterator[bytes]:
        async for chunk in chunks(b"x" * size):
            yield chunk
        raise OSError("the source broke")

    def broken_in_a_thread() -> Iterator[bytes]:
        yield b"x" * size
        raise OSError("the source broke")

    with pytest.raises(OSError, match="the source broke"):
        await store.create(key(), broken(), content_type="text/plain")
    with pytest.raises(OSError, match="the source broke"):
        await asyncio.to_thread(store.blocking.create, key(), broken_in_a_thread(), content_type="text/plain")
    with pytest.raises(FileNotFoundError):
        await store.create(key(), Path("/nonexistent"), content_type="text/plain")
    await nothing_left()


async def test_a_source_of_another_size_or_above_the_limit_leaves_nothing(
    store: FileStore, nothing_left: NothingLeft
) -> None:
    content = b"x" * LARGE
    for size in (LARGE - 1, LARGE + 1):
        with pytest.raises(WrongSize, match="announced"):
            await store.create(key(), chunks(content), content_type="text/plain", size=size)
    for source in (content, chunks(content)):
        with pytest.raises(TooLarge, match="9,449,528 bytes"):
            await store.create(key(), source, content_type="text/plain", limit=LARGE - 1)
    await nothing_left()
    stored = await store.create(key(), chunks(content), content_type="text/plain", size=LARGE, limit=LARGE)
    assert stored.bytes == LARGE
    assert len(await store.list()) == 1


async def test_a_size_above_the_limit_is_refused_before_a_byte_is_read(store: FileStore) -> None:
    async def unread() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    create = store.create(key(), unread(), content_type="text/plain", size=11, limit=10)
    with pytest.raises(TooLarge):
        await asyncio.wait_for(create, 20)


@pytest.mark.parametrize("size", [10, LARGE])
async def test_a_create_that_is_cancelled_leaves_nothing(
    store: FileStore, nothing_left: NothingLeft, size: int
) -> None:
    has_begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        async for chunk in chunks(b"x" * size):
            yield chunk
        has_begun.set()
        await asyncio.Event().wait()

    creating = asyncio.create_task(store.create(key(), endless(), content_type="text/plain"))
    await asyncio.wait_for(has_begun.wait(), 40)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    await nothing_left()


async def test_a_thread_gives_up(store: FileStore, nothing_left: NothingLeft) -> None:
    abandoned = threading.Event()

    def source() -> Iterator[bytes]:
        yield b"x" * LARGE
        abandoned.set()
        yield b"y"

    with pytest.raises(Abandoned):
        await asyncio.to_thread(store.blocking.create, key(), source(), content_type="text/plain", abandoned=abandoned)
    await nothing_left()


@pytest.mark.parametrize(
    "name", ["ünïcode 影片.mp4", "a b%2F%00+c?d=e&f#x", "*[]{}\"'<>|~^`\\;:@,$!()", ".hidden", "x" * 200]
)
async def test_names_of_all_kinds(store: FileStore, name: str) -> None:
    at = key(name)
    await store.create(at, b"content", content_type="text/plain")
    assert (await store.head(at)).name == name
    assert await read(store, at) == b"content"
    assert await listed(store, f"acme/{JOB}") == [at]
    await store.delete([at])
    assert await listed(store) == []


async def test_bad_keys_and_content_types_are_refused(store: FileStore, root: Path) -> None:
    outside = root.parent / "outside"
    for at in ("", "/etc/passwd", "../outside", "a/../../outside", "a//b", "a/b/", "a/\x00", "a/./b", "a/b#1"):
        with pytest.raises(InvalidName):
            await store.create(at, b"x", content_type="text/plain")
        for call in (store.head, store.open, lambda at: store.delete([at])):
            with pytest.raises(InvalidName):
                await call(at)  # type: ignore[operator]
    for content_type in ("", "text/plain\r\nx: y", "téxt/plain", "x" * 1_001):
        with pytest.raises(InvalidName):
            await store.create(key(), b"x", content_type=content_type)
    assert not outside.exists()


async def test_a_missing_file_is_not_found(store: FileStore) -> None:
    at = key()
    for call in (store.head, store.open):
        with pytest.raises(NotFound, match=r"poster\.jpg"):
            await call(at)
    await store.delete([at])


async def test_a_prefix_is_deleted_with_everything_below_it_and_nothing_beside_it(store: FileStore) -> None:
    other = "01890a5d-ac96-774b-bcce-b302099a8058"
    mine, others = [key("a"), key("b"), key("b")], [key("a", other)]
    for at in (*mine, *others):
        await store.create(at, b"content", content_type="text/plain")
    await store.delete([f"acme/{JOB[:-1]}"])  # the begin of a name is no prefix
    assert await listed(store) == sorted((*mine, *others), key=lambda at: f"{at}/")
    await store.delete([mine[0]])
    assert await listed(store, f"acme/{JOB}") == sorted(mine[1:], key=lambda at: f"{at}/")
    await store.delete([f"acme/{JOB}"])
    assert await listed(store) == others
    assert await read(store, others[0]) == b"content"


async def test_a_listing_comes_in_pages_in_order(store: FileStore) -> None:
    keys = [f"a/{name}/x" for name in ("b", "b.c", "b0", "b-", "ü", "c")] + ["a.b/x", "a/z"]
    for at in keys:
        await store.create(at, b"content", content_type="text/plain")
    ordered = sorted(keys, key=lambda at: f"{at}/".encode())
    assert await listed(store) == ordered
    pages, after = [], None
    while page := await store.list("", after, 3):
        pages += [each.key for each in page]
        after = page[-1].key
    assert pages == ordered
    assert await listed(store, "a") == [at for at in ordered if at.startswith("a/")]
    entry = (await store.list())[0]
    assert entry.is_whole
    assert entry.bytes > len(b"content")
