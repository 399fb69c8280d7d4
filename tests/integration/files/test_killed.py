"""A process that is killed while it stores or deletes a file leaves the whole file, or nothing that anybody sees."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heimdex_files.backends.local import TEMPORARIES
from heimdex_files.blocking import TEMPORARY_SECONDS
from heimdex_files.errors import NotFound
from heimdex_files.store import FileStore
from tests.integration.files.test_store import LARGE, key, read
from tests.support.crash_points import CONTENT, JOB, KEY
from tests.support.s3 import ACCESS, S3Server
from tests.support.waiting import eventually

DAY = TEMPORARY_SECONDS


async def crash_points(folder: Path, work: str) -> list[Path]:
    """Kill a process at each call of this work. Returns the stores that it left, in order."""
    folder.mkdir()
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tests.support.crash_points", str(folder), work],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        check=True,
        timeout=100,
    )
    return [folder / str(number) for number in range(1, int(done.stdout) + 1)]


def left_in(root: Path) -> list[str]:
    return sorted(str(each.relative_to(root)) for each in root.rglob("*"))


async def test_killed_while_it_stores_a_file_at_any_call(scratch: Path) -> None:
    stores = await crash_points(scratch / "stores", "create")
    assert len(stores) > 20
    outcomes = []
    for root in stores:
        async with FileStore.from_url(f"file://{root}") as store:
            assert all(each.is_whole for each in await store.list())
            try:
                assert await read(store, KEY) == CONTENT
                outcomes.append("whole")
            except NotFound:
                outcomes.append("nothing")
                assert await store.list() == []
                # What is left does not hinder the next attempt, even with the same key.
                await store.create(KEY, CONTENT, content_type="video/mp4")
                await asyncio.to_thread(os.rename, root / KEY, scratch / f"taken-{root.name}")
            assert await store.sweep() == 0
            store.blocking.sweep(now=time.time() + DAY + 10)
            await store.delete([KEY])
            assert set(left_in(root)) <= {TEMPORARIES}
    # One call makes the file visible: before it there is nothing, after it all of it.
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {"nothing", "whole"}


async def test_killed_while_it_deletes_a_job_at_any_call(scratch: Path) -> None:
    stores = await crash_points(scratch / "stores", "delete")
    assert len(stores) > 5
    for root in stores:
        async with FileStore.from_url(f"file://{root}") as store:
            if await store.list():
                assert await read(store, KEY) == CONTENT
                await store.delete([JOB])
            if int(root.name) % 2:  # a deletion is repeated, or the clean-up finds the rest
                await store.delete([JOB])
            assert await store.list() == []
            store.blocking.sweep(now=time.time() + DAY + 10)
            assert left_in(root) == [TEMPORARIES]


async def test_a_sweep_leaves_what_is_being_written(folder_store: FileStore, root: Path) -> None:
    may_end = asyncio.Event()

    async def slow():  # type: ignore[no-untyped-def]
        yield b"x" * LARGE
        await may_end.wait()
        yield b"y"

    creating = asyncio.create_task(folder_store.create(key(), slow(), content_type="text/plain"))
    temporaries = root / TEMPORARIES
    await eventually(lambda: temporaries.exists() and os.listdir(temporaries), what="the create has begun")
    left = temporaries / "left"
    left.mkdir()
    os.utime(left, (0, time.time() - DAY - 1))
    assert await folder_store.sweep() == 1
    may_end.set()
    assert (await creating).bytes == LARGE + 1


_KILLED = """
import os, signal, sys
from heimdex_files.backends import s3
from heimdex_files.blocking import BlockingFileStore
from heimdex_files.url import backend_of

store = BlockingFileStore(backend_of(sys.argv[1]))

def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def pieces():
    for _ in range(30):
        yield b"x" * 2**20
    if sys.argv[3] == "in the bytes":
        kill()

if sys.argv[3] == "before the description":
    s3.Bucket._create_text = kill
store.create(sys.argv[2], pieces(), content_type="video/mp4")
"""


@pytest.mark.parametrize("when", ["in the bytes", "before the description"])
async def test_killed_while_it_stores_a_file_in_s3(
    own_s3: S3Server, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ACCESS.items():
        monkeypatch.setenv(name, value)
    url, at = own_s3.url("killed"), key("film.mp4")
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", _KILLED, url, at, when], timeout=100)
    assert done.returncode == -9
    async with FileStore.from_url(url) as store:
        with pytest.raises(NotFound):
            await store.head(at)
        assert [each.is_whole for each in await store.list()] == ([] if when == "in the bytes" else [False])
        assert len(own_s3.unfinished()) == (when == "in the bytes")  # for the bucket's lifecycle rule
        await store.create(at, b"content", content_type="text/plain")
        assert await read(store, at) == b"content"
        await store.delete([at])
        assert own_s3.keys("killed") == []
