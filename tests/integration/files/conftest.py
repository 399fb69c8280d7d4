"""Stores of files on a real folder and on a real S3 server. No other server is needed."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from heimdex_files.backends.local import TEMPORARIES
from heimdex_files.store import FileStore
from tests.support.s3 import ACCESS, S3Server

NothingLeft = Callable[[], Awaitable[None]]


@pytest.fixture(scope="session")
def shared_s3() -> Iterator[S3Server]:
    """An S3 server of all tests of this process. Do not stop it; use `own_s3` for that."""
    server = S3Server()
    yield server
    server.kill()


@pytest.fixture
def own_s3() -> Iterator[S3Server]:
    """An S3 server of this test, which it may freeze, kill and start."""
    server = S3Server()
    yield server
    server.thaw()
    server.kill()


@pytest.fixture
def _access(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ACCESS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def root(scratch: Path) -> Path:
    """An empty folder."""
    folder = scratch / "files"
    folder.mkdir()
    return folder


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, root: Path, _access: None) -> str:
    """The HEIMDEX_FILES_URL of an empty store: each test runs on both kinds."""
    if request.param == "file":
        return f"file://{root}"
    server: S3Server = request.getfixturevalue("shared_s3")
    return server.url(f"test-{uuid.uuid4()}")


@pytest_asyncio.fixture
async def store(url: str) -> AsyncIterator[FileStore]:
    async with FileStore.from_url(url) as opened:
        yield opened


@pytest_asyncio.fixture
async def folder_store(root: Path) -> AsyncIterator[FileStore]:
    """An empty store on a folder."""
    async with FileStore.from_url(f"file://{root}") as opened:
        yield opened


@pytest.fixture
def nothing_left(url: str, store: FileStore, request: pytest.FixtureRequest, root: Path) -> NothingLeft:
    """A function that checks that nothing is stored, nor left where no listing shows it."""

    async def check() -> None:
        assert await asyncio.to_thread(store.blocking.is_empty)
        if url.startswith("file:"):
            assert not [each for each in root.rglob("*") if each.name != TEMPORARIES]
        else:
            server: S3Server = request.getfixturevalue("shared_s3")
            prefix = url.removeprefix("s3://").partition("/")[2].partition("?")[0]
            assert not [key for key in server.unfinished() if key.startswith(prefix)]

    return check
