"""Runs many jobs at once through a system without faults, and counts the anomalies, of which there must be none."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, fields

import msgspec

from bench.support.load import connect, post_request
from tests.support.cluster import Cluster
from tests.support.pipelines.counted import STAGES, Begun
from tests.support.rows import fetch
from tests.support.services import System
from tests.support.spinning import Spinners
from tests.support.waiting import eventually
from tests.support.watching import JOBS, Observer

CONNECTIONS = 16

ENV = {
    "HEIMDEX_STREAM_REPLICAS": "3",
    # Long, so that no lease lapses while a process waits for a core.
    "HEIMDEX_ACK_WAIT_SECONDS": "30",
    # Not debug: that logs the messages of each job, which costs as much as the job.
    "HEIMDEX_LOG_LEVEL": "info",
}


@dataclass(frozen=True)
class Rush:
    """The result of a rush. All fields but `jobs`, `refused` and `seconds` must be 0."""

    #: The number of accepted jobs.
    jobs: int
    #: POSTs that did not return 202: on a busy machine a POST may time out.
    refused: int
    #: The seconds from the first POST until the stream was empty.
    seconds: float
    superseded: int
    restored: int
    dropped: int
    #: Jobs that had not completed when the stream was empty.
    unfinished: int
    #: The number of (stage, job) pairs that started more than once.
    twice: int

    @property
    def per_second(self) -> float:
        return self.jobs / self.seconds

    @property
    def wrong(self) -> dict[str, int]:
        """The counts that must be 0 and are not, by name."""
        harmless = {"jobs", "refused", "seconds"}
        counts = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in harmless}
        return {name: count for name, count in counts.items() if count}


async def rush(
    system: System, cluster: Cluster, database_url: str, jobs: int, *, busy: bool, timeout: float = 90
) -> Rush:
    """Start this system on a running cluster, POST this many jobs, and wait until the stream is empty.

    busy: on each core a process that only computes runs at the same time. No process is killed or frozen.
    """
    begun = Begun(system.folder / "begun")
    system.env |= ENV | begun.env
    system.start_all(stages=STAGES)
    await system.ready()
    await cluster.whole()
    with Spinners(system.folder, timeout, count=None if busy else 0):
        return await _rush(system, begun, cluster.url, database_url, jobs, timeout)


async def _rush(system: System, begun: Begun, nats_url: str, database_url: str, jobs: int, timeout: float) -> Rush:
    accepted: list[str] = []
    refused: Counter[int] = Counter()
    began = time.monotonic()
    await post_all(system.port, jobs, accepted, refused)
    assert set(refused) <= {500, 503}, f"unexpected status codes of POST: {refused}"
    async with Observer(nats_url) as seen:
        seconds = await _empty_after(seen, began, timeout)
    # A job whose POST returned 500 may run all the same.
    rows = await fetch(database_url, "SELECT id::text, status FROM jobs")
    completed = {row["id"] for row in rows if row["status"] == "completed"}
    return Rush(
        jobs=len(accepted),
        refused=refused.total(),
        seconds=seconds,
        superseded=len(system.logged("delivery_superseded")),
        restored=len(system.logged("job_restored")),
        dropped=len(system.logged("delivery_dropped")),
        unfinished=len({row["id"] for row in rows} - completed | set(accepted) - completed),
        twice=len(begun.twice()),
    )


async def post_all(port: int, jobs: int, accepted: list[str], refused: Counter[int]) -> None:
    """POST this many jobs of type `counted` on CONNECTIONS connections.

    Adds the ids of the accepted jobs to `accepted`, and counts the other status codes in `refused`.
    """
    request = post_request(b'{"type": "counted"}')
    numbers = iter(range(jobs))

    async def post() -> None:
        connection = await connect(port)
        for _ in numbers:
            status, body = await connection.request(request)
            if status == 202:
                accepted.append(msgspec.json.decode(body)["job_id"])
            else:
                refused[status] += 1
        connection.close()

    await asyncio.gather(*(post() for _ in range(CONNECTIONS)))


async def _empty_after(seen: Observer, began: float, timeout: float) -> float:
    """Wait until the stream is empty, and return the seconds from `began` until it was.

    It must stay empty for a second, because its leader may not have all messages yet.
    """
    since: dict[int, float] = {}

    async def empty() -> float | None:
        state = (await seen.api(f"STREAM.INFO.{JOBS}"))["state"]
        if state["messages"]:
            since.clear()
            return None
        first = since.setdefault(state["last_seq"], time.monotonic())
        return first - began if time.monotonic() - first > 1 else None

    return await eventually(empty, timeout, "the stream is empty, and stays so")
