"""A file of JetStream is damaged while the server is stopped: everything continues by itself, and no job is lost."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Api
from tests.support.following import Follower
from tests.support.pipelines.behaviours import STAGES, Behaviours
from tests.support.rows import fetch
from tests.support.services import LAUNCHERS, System
from tests.support.waiting import eventually
from tests.support.watching import JOBS, Observer

# A stream or a consumer that the server dropped is created again, and its jobs continue from their rows.
pytestmark = pytest.mark.allows("topology", "restored", "repeated", "superseded", "dropped", "lost")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1])


def garble(path: Path) -> None:
    path.write_bytes(bytes(byte ^ 0xFF for byte in path.read_bytes()))


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a stage's state, cut": ("obs/working/o.dat", cut),
    "a stage's state, garbled": ("obs/working/o.dat", garble),
    "a stage's configuration": ("obs/working/meta.inf", garble),
    "the store's state": ("obs/status-store/o.dat", garble),
    "the store's configuration, gone": ("obs/status-store/meta.inf", Path.unlink),
    "the stream's configuration": ("meta.inf", garble),
    "the stream's checksum, gone": ("meta.sum", Path.unlink),
    "the stream's messages": ("msgs/1.blk", garble),
}


#: One that the server refuses for good, and one that makes it forget the stream.
SHORT = ("a stage's state, garbled", "the stream's configuration")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.full) for name in DAMAGES]
)
async def test_all_jobs_continue_after_a_file_was_damaged(
    system: System, api: Api, nats: Any, duties: Behaviours, database_url: str, name: str
) -> None:
    system.start_all(stages=STAGES, without=("status-store",))
    system.start("status-store", launcher=LAUNCHERS / "store_that_sweeps_soon.py")
    await system.ready()
    async with Follower([system.url]) as follower:
        held = [await api.submit("gated") for _ in range(5)]
        follower.add(*held)
        await eventually(lambda: len(duties.runs()) == 5)

        async def recorded() -> bool:
            return len(await fetch(database_url, "SELECT FROM jobs WHERE status = 'processing'")) == 5

        await eventually(recorded)
        await asyncio.to_thread(nats.stop)
        file, damage = DAMAGES[name]
        damage(nats.directory / "jetstream" / "$G" / "streams" / JOBS / file)
        await asyncio.to_thread(nats.start)
        await eventually(lambda: accepted(api), what="accepting again")
        duties.open_gate()
        for job_id in held:
            await api.wait_until(job_id, "completed")
        async with Observer(nats.url) as seen:
            await eventually(seen.empty, what="the stream is empty")
    follower.check()


async def accepted(api: Api) -> bool:
    return (await api.http.post("/jobs", json={"type": "quick"})).status_code == 202
