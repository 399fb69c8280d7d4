"""A store that is full, absent, read-only, forbidden, slow or silent answers with a sentence, and nothing is lost."""

import asyncio
import contextlib
import os
import resource
import shutil
import socket
import socketserver
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from heimdex_files import store as stores
from heimdex_files.backends import local
from heimdex_files.backends.local import TEMPORARIES
from heimdex_files.errors import Damaged, Full, NotFound, Unavailable
from heimdex_files.store import FileStore
from tests.integration.files.test_store import LARGE, MIB, chunks, key, read
from tests.support.s3 import ACCESS, BUCKET, S3Server
from tests.support.waiting import never


def mount(folder: Path, options: str) -> None:
    """Mount a small disk there, or skip the test."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("mounting a small disk takes root on Linux")
    command = ["mount", "-t", "tmpfs", "-o", options, "heimdex-test", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("a small disk cannot be mounted here")


@pytest.fixture
def small_disk(root: Path) -> Iterator[Path]:
    """A folder on a file system of its own, of 16 MiB and 100 files and folders."""
    mount(root, f"size={16 * MIB},nr_inodes=100")
    yield root
    subprocess.run(["umount", "-l", str(root)], check=False, capture_output=True)


class Cutter:
    """A proxy that closes a connection once it has passed so many bytes of the server on."""

    def __init__(self, target: int, after: int) -> None:
        self.cuts = 0
        cutter = self

        class _Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(("127.0.0.1", target)) as upstream:
                    threading.Thread(target=_pass_on, args=(self.request, upstream), daemon=True).start()
                    rest = after
                    while rest > 0 and (data := upstream.recv(min(rest, 65536))):
                        with contextlib.suppress(OSError):
                            self.request.sendall(data)
                        rest -= len(data)
                    cutter.cuts += rest == 0

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    def __enter__(self) -> "Cutter":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)


@pytest.fixture
def access(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ACCESS.items():
        monkeypatch.setenv(name, value)


async def test_a_full_disk_refuses_a_file_keeps_the_others_and_can_be_freed(small_disk: Path) -> None:
    async with FileStore.from_url(f"file://{small_disk}") as store:
        first, content = key(), os.urandom(10 * MIB)
        await store.create(first, content, content_type="video/mp4")
        for source in (chunks(content), content):
            with pytest.raises(Full, match="no space is left"):
                await store.create(key(), source, content_type="video/mp4")
        assert os.listdir(small_disk / TEMPORARIES) == []
        assert await read(store, first) == content
        # With no room for a name either, files can still be deleted.
        shutil.rmtree(small_disk / TEMPORARIES)
        with contextlib.suppress(OSError):
            for number in range(200):
                (small_disk / f"filler-{number}").touch()
        with pytest.raises(Full, match="no space is left"):
            await store.create(key(), b"content", content_type="text/plain")
        await store.delete([first])
        with pytest.raises(NotFound):
            await store.head(first)
        (small_disk / "filler-0").unlink()
        await store.create(first, b"content", content_type="text/plain")


async def test_a_file_above_the_limit_of_the_process_is_refused(folder_store: FileStore, root: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MIB, before[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(Full, match="larger than"):
            await folder_store.create(key(), chunks(b"x" * LARGE), content_type="video/mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(root / TEMPORARIES) == []


async def test_a_disk_that_is_mounted_read_only(small_disk: Path) -> None:
    async with FileStore.from_url(f"file://{small_disk}") as store:
        at = key()
        await store.create(at, b"content", content_type="text/plain")
        remount = ["mount", "-o", "remount,ro", str(small_disk)]
        await asyncio.to_thread(subprocess.run, remount, check=True)
        with pytest.raises(Unavailable, match="read-only"):
            await store.create(key(), b"content", content_type="text/plain")
        with pytest.raises(Unavailable, match="read-only"):
            await store.delete([at])
        assert await read(store, at) == b"content"


async def test_a_folder_that_is_absent_is_unavailable_and_never_made(scratch: Path) -> None:
    root = scratch / "absent"
    async with FileStore.from_url(f"file://{root}") as store:
        for call in (
            store.create(key(), b"content", content_type="text/plain"),
            store.head(key()),
            store.open(key()),
            store.delete([key()]),
            store.list(),
            store.sweep(),
            store.run(store.blocking.is_empty),
        ):
            with pytest.raises(Unavailable, match="does not exist"):
                await call
        assert not os.path.lexists(root)
        os.mkdir(root)
        await store.create(key(), b"content", content_type="text/plain")


_FORBIDDEN = """
import asyncio, os, sys
from heimdex_files.errors import Unavailable
from heimdex_files.store import FileStore

async def main():
    os.setgid(65534)
    os.setuid(65534)
    async with FileStore.from_url(sys.argv[1]) as store:
        for call in (store.create("a/b", b"x", content_type="text/plain"), store.head("a/c"), store.list()):
            try:
                await call
            except Unavailable as error:
                print(error)

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
async def test_a_folder_of_another_user(root: Path) -> None:
    os.chmod(root, stat.S_IRWXU)
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", _FORBIDDEN, f"file://{root}"], stdout=subprocess.PIPE, timeout=60
    )
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 3
    assert all("the user 65534 has no permission" in line for line in lines)


async def test_bytes_that_are_gone_or_cut_are_a_lost_file(folder_store: FileStore, root: Path) -> None:
    at = key()
    await folder_store.create(at, b"content", content_type="text/plain")
    os.truncate(root / at / "data", 3)
    with pytest.raises(Damaged, match="has 3 bytes, but 7"):
        await folder_store.open(at)
    os.unlink(root / at / "data")
    with pytest.raises(NotFound, match="are gone"):
        await folder_store.open(at)
    (root / at / "about.json").write_text("{}")
    with pytest.raises(Damaged, match="cannot be read"):
        await folder_store.head(at)


async def test_a_disk_that_hangs_delays_the_caller_and_nobody_else(
    folder_store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, content = key(), b"x" * LARGE
    await folder_store.create(at, content, content_type="video/mp4")
    may_go_on = threading.Event()
    original = local._write_all

    def hanging(descriptor: int, piece: bytes) -> None:
        may_go_on.wait()
        original(descriptor, piece)

    monkeypatch.setattr(local, "_write_all", hanging)
    monkeypatch.setattr(stores, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(stores, "_UNDO_SECONDS", 0.1)
    with pytest.raises(Unavailable, match=r"took nothing for 0\.5 s"):
        await folder_store.create(key(), chunks(content), content_type="video/mp4")
    assert await read(folder_store, at) == content
    may_go_on.set()
    monkeypatch.setattr(local, "_write_all", original)
    slow = key()
    await folder_store.create(slow, chunks(content), content_type="video/mp4")
    assert await read(folder_store, slow) == content


async def test_everything_is_synced_before_and_after_the_rename(
    folder_store: FileStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))

    def recorded_rename(source: Path, target: Path) -> None:
        rename(source, target)
        done.append(("rename", str(target)))

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    at = key()
    await folder_store.create(at, b"content", content_type="text/plain")
    target = root / at
    at_rename = done.index(("rename", str(target)))
    before = [Path(path) for what, path in done[:at_rename] if what == "fsync"]
    assert [path.name for path in before[-3:-1]] == ["data", "about.json"]
    assert before[-1] == before[-2].parent
    assert root in before  # it has a new folder, that of the temporaries
    after = [Path(path) for _, path in done[at_rename + 1 :]]
    assert after == [target.parents[number] for number in range(6)]
    assert after[-1] == root


async def test_an_s3_server_that_is_down_and_comes_back(own_s3: S3Server, access: None) -> None:
    async with FileStore.from_url(own_s3.url("down")) as store:
        own_s3.kill()
        for call in (
            store.create(key(), b"content", content_type="text/plain"),
            store.create(key(), chunks(b"x" * LARGE), content_type="video/mp4"),
            store.head(key()),
            store.list(),
            store.delete([key()]),
        ):
            with pytest.raises(Unavailable, match="did not answer"):
                await call
        own_s3.start()
        await store.create(key(), b"content", content_type="text/plain")


async def test_an_s3_server_that_is_silent_for_a_while_only_delays(own_s3: S3Server, access: None) -> None:
    async with FileStore.from_url(own_s3.url("slow")) as store:
        at, content = key(), os.urandom(LARGE)
        own_s3.freeze()
        creating = asyncio.create_task(store.create(at, chunks(content), content_type="video/mp4"))
        await never(creating.done, 2)
        own_s3.thaw()
        await creating
        assert await read(store, at) == content


async def test_a_download_from_s3_goes_on_where_the_server_cut_it(own_s3: S3Server, access: None) -> None:
    with Cutter(own_s3.port, after=3 * MIB) as cutter:
        url = f"s3://{BUCKET}/cut?endpoint=http://127.0.0.1:{cutter.port}"
        async with FileStore.from_url(own_s3.url("cut")) as direct, FileStore.from_url(url) as store:
            at, content = key(), os.urandom(20 * MIB)
            await direct.create(at, content, content_type="video/mp4")
            assert await read(store, at) == content
    assert cutter.cuts >= 3


async def test_a_bucket_that_does_not_exist_is_no_lost_file(shared_s3: S3Server, access: None) -> None:
    async with FileStore.from_url(shared_s3.url("x", bucket="no-such-bucket")) as store:
        for call in (
            store.create(key(), b"content", content_type="text/plain"),
            store.head(key()),
            store.list(),
            store.delete([key()]),
        ):
            with pytest.raises(Unavailable, match="bucket does not exist"):
                await call


async def test_an_object_that_vanishes_is_a_lost_file(shared_s3: S3Server, access: None) -> None:
    async with FileStore.from_url(shared_s3.url("vanished")) as store:
        at = key()
        await store.create(at, b"x" * LARGE, content_type="text/plain")
        data = next(each for each in shared_s3.keys("vanished") if not each.endswith("about.json"))
        shared_s3.client.put_object(Bucket=BUCKET, Key=f"vanished/{data}", Body=b"short")
        with pytest.raises(Damaged, match="has 5 bytes"):
            await read(store, at)
        shared_s3.client.delete_object(Bucket=BUCKET, Key=f"vanished/{data}")
        with pytest.raises(NotFound, match="are gone"):
            await read(store, at)


class _Refusing(BaseHTTPRequestHandler):
    """Answers every PUT and POST as a server without room does, and every GET as one without the object."""

    answer = (507, "XMinioStorageFull")

    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        status, code = self.answer if self.command in {"PUT", "POST"} else (404, "NoSuchKey")
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = _refuse

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[socketserver.BaseServer]:
    """A server that has no room: moto's and AWS's always have some."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (507, "XMinioStorageFull", Full, "no room left"),
        (403, "QuotaExceeded", Full, "no room left"),
        (403, "AccessDenied", Unavailable, "refuses these credentials"),
        (403, "InvalidAccessKeyId", Unavailable, "refuses these credentials"),
        (400, "InvalidArgument", Unavailable, "400 Bad Request, InvalidArgument"),
    ],
)
@pytest.mark.parametrize("size", [10, LARGE])
async def test_what_an_s3_server_refuses_is_said_in_words(
    refusing: ThreadingHTTPServer,
    access: None,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    kind: type[Exception],
    words: str,
    size: int,
) -> None:
    monkeypatch.setattr(_Refusing, "answer", (status, code))
    async with FileStore.from_url(f"s3://bucket/x?endpoint=http://127.0.0.1:{refusing.server_port}") as store:
        with pytest.raises(kind, match=words) as refused:
            await store.create(key(), chunks(b"x" * size), content_type="text/plain")
        assert "\n" not in str(refused.value)


async def test_a_reader_keeps_a_file_that_is_deleted_meanwhile_on_a_disk(folder_store: FileStore) -> None:
    at, content = key(), os.urandom(LARGE)
    await folder_store.create(at, content, content_type="video/mp4")
    async with await folder_store.open(at) as download:
        await folder_store.delete([at])
        assert b"".join([bytes(chunk) async for chunk in download]) == content


async def test_creates_and_deletions_of_neighbours_do_not_disturb_each_other(folder_store: FileStore) -> None:
    """Deletions remove the folders that they leave empty, which creates are about to use."""

    async def create_and_delete(number: int) -> None:
        for _ in range(30):
            at = key(f"file-{number}")
            await folder_store.create(at, b"content", content_type="text/plain")
            assert await read(folder_store, at) == b"content"
            await folder_store.delete([at])

    await asyncio.gather(*map(create_and_delete, range(8)))
    assert await folder_store.list() == []
