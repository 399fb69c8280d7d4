"""Fault 9: a full queue or disk. The gateway refuses in time, and accepts again by itself; accepted jobs complete."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from heimdex_cli.embedded.child_process import ChildProcess
from heimdex_cli.embedded.ports import free_port
from heimdex_cli.embedded.system import EmbeddedSystem
from heimdex_cli.settings import Addresses
from heimdex_contracts import streams
from tests.conftest import NewSystem
from tests.support.api import Api
from tests.support.following import Follower
from tests.support.load import Load
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.servers import NatsServer
from tests.support.services import System
from tests.support.waiting import eventually
from tests.support.watching import Observer

MOST = 20
#: JetStream takes three quarters of what is free for its own limit, and our streams reserve 128 MiB of that.
DISK_BYTES = 256 * 1024 * 1024
#: What our own streams reserve, and some more.
LIMIT_BYTES = 32 * 1024 * 1024 + sum(
    stream.options.get("max_bytes", 0)
    for stream in streams.for_stages(("any",), 2.0)
    if stream.options["storage"] == "file"
)


async def test_post_is_503_with_retry_after_while_the_queue_is_full(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    system.env["HEIMDEX_MAX_PENDING_JOBS"] = str(MOST)
    system.start_all(stages=STAGES)
    await system.ready()
    async with Observer(nats.url) as seen:
        accepted = []
        while (response := await api.http.post("/jobs", json={"type": "gated"})).status_code == 202:
            accepted.append(response.json()["job_id"])
            assert len(accepted) <= MOST
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) > 0
        assert str(MOST) in response.json()["detail"]
        assert len(accepted) == MOST
        # It keeps refusing until a job finishes, and stores nothing of what it refuses.
        count = await seen.count()
        for _ in range(5):
            assert (await api.http.post("/jobs", json={"type": "gated"})).status_code == 503
        assert await seen.count() == count
        duties.open_gate()
        for job_id in accepted:
            await api.wait_until(job_id, "completed")
        await eventually(lambda: _accepts(api), what="accepting resumes by itself")
        await eventually(seen.empty)


async def test_many_concurrent_callers_do_not_exceed_the_limit(
    system: System, api: Api, nats: NatsServer, duties: Behaviours
) -> None:
    system.env["HEIMDEX_MAX_PENDING_JOBS"] = str(MOST)
    system.start_all(stages=STAGES)
    await system.ready()
    answers = await asyncio.gather(*(api.http.post("/jobs", json={"type": "gated"}) for _ in range(5 * MOST)))
    codes = [answer.status_code for answer in answers]
    assert 0 < codes.count(202) <= MOST
    assert set(codes) == {202, 503}


async def _accepts(api: Api) -> bool:
    return (await api.http.post("/jobs", json={"type": "quick"})).status_code == 202


@pytest.fixture
def small_disk(scratch: Path) -> Iterator[Path]:
    """The folder for the streams of an embedded system, on a small file system of its own."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("mounting a small disk takes root on Linux")
    folder = scratch / "data" / "nats"
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "heimdex-test", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


@pytest.fixture
def embedded(small_disk: Path) -> Iterator[EmbeddedSystem]:
    """The system that `make run` starts, with its streams on that disk."""
    environ = {"HEIMDEX_MOCK_TIME_SCALE": "0.05", "HEIMDEX_ACK_WAIT_SECONDS": "2"}
    with EmbeddedSystem(small_disk.parent, Addresses(monitor_port=0), environ=environ) as system:
        yield system


async def test_a_full_disk_under_jetstream_causes_no_wrong_202_and_everything_resumes_by_itself(
    embedded: EmbeddedSystem, small_disk: Path
) -> None:
    async with (
        Follower([embedded.url], newest=5) as follower,
        Load([embedded.url], per_second=20, on_accepted=follower.add) as load,
    ):
        await load.more(10)
        filler = small_disk / "filler"
        fill(filler)
        try:
            refused = load.refused.total()
            await eventually(lambda: load.refused.total() > refused + 5, what="POST refuses while the disk is full")
            # Its /healthz reports it, so that a watchdog can end the server once space is free, and not before.
            server = embedded.nats.pid
            await eventually(lambda: _is_unhealthy(embedded), what="the server says that it gave a stream up")
            refused = load.refused.total()
            await eventually(lambda: load.refused.total() > refused + 5, what="POST goes on refusing")
            assert embedded.nats.pid == server
        finally:
            filler.unlink()
        began = time.monotonic()
        await load.more(5)
        print(f"\naccepting again {time.monotonic() - began:.1f} s after there was room")
        print(f"refused meanwhile: {dict(load.refused)} {dict(load.details)}")
        await load.stop()
        ends = await load.all_end(embedded.postgres.url)
        assert set(ends.values()) == {"completed"}
    async with Observer(embedded.nats.url) as seen:
        await eventually(seen.empty)
    assert set(load.refused) <= {"500", "503"}
    follower.check()


async def _is_unhealthy(embedded: EmbeddedSystem) -> bool:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{embedded.nats.monitor_url}/healthz")
        return answer.status_code == 503 and "write error" in answer.text


@contextmanager
def limited_server(scratch: Path, limit: int) -> Iterator[str]:
    """A nats-server whose own storage limit is far below the disk's; yields its URL."""
    port = free_port()
    config = scratch / "limited.conf"
    store = json.dumps(str(scratch / "nats"))
    config.write_text(f"listen: 127.0.0.1:{port}\njetstream {{ store_dir: {store}, max_file_store: {limit} }}\n")
    binary = Path(sys.executable).with_name("nats-server")
    child = ChildProcess([binary, "-c", config], log_path=scratch / "limited.log", stop_seconds=15)
    child.start()
    try:
        yield f"nats://127.0.0.1:{port}"
    finally:
        child.kill()


@pytest.mark.full
async def test_at_jetstreams_storage_limit_jobs_are_refused_until_space_is_free(
    new_system: NewSystem, scratch: Path, database_url: str
) -> None:
    with limited_server(scratch, LIMIT_BYTES) as url:
        system = new_system(url, database_url, HEIMDEX_MOCK_TIME_SCALE="0.05")
        system.start_all()
        await system.ready()
        async with (
            Follower([system.url], newest=5) as follower,
            Load([system.url], per_second=20, on_accepted=follower.add) as load,
            Observer(url) as seen,
        ):
            await load.more(10)
            # Somebody else's stream takes whatever the limit leaves.
            await seen.api("STREAM.CREATE.FILLER", {"name": "FILLER", "subjects": ["filler"], "storage": "file"})
            for size in (900_000, 20_000, 500):
                while b"error" not in (await seen.nc.request("filler", b"x" * size, timeout=10)).data:
                    pass
            refused = load.refused["503"]
            await eventually(lambda: load.refused["503"] > refused + 5, what="POST refuses")
            began = time.monotonic()
            await seen.api("STREAM.DELETE.FILLER")
            await load.more(5)
            print(f"\naccepting again {time.monotonic() - began:.1f} s after there was room")
            await load.stop()
            assert set((await load.all_end(database_url)).values()) == {"completed"}
            await eventually(seen.empty)
        assert set(load.refused) <= {"500", "503"}
        follower.check()


def fill(path: Path) -> None:
    """Fill the disk to the last block."""
    with path.open("wb", buffering=0) as filler:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    filler.write(b"x" * size)
            except OSError:
                continue
