"""A steady load of POSTs, and its results."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.support.background import BackgroundRequests
from tests.support.following import Follower
from tests.support.rows import statuses
from tests.support.services import System
from tests.support.waiting import eventually


class Load(BackgroundRequests):
    """Submits `per_second` jobs per second, at each of these gateways in turn, without waiting for responses."""

    def __init__(
        self,
        urls: Iterable[str],
        per_second: float,
        bodies: Iterable[dict[str, Any]] = ({"type": "mock_process"},),
        on_accepted: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(urls)
        self.accepted: list[str] = []
        #: The accepted jobs that were submitted with `fail_at_stage`.
        self.to_fail: set[str] = set()
        #: What was submitted, by the id of the accepted job.
        self.bodies: dict[str, dict[str, Any]] = {}
        #: The times at which the jobs were accepted, by the monotonic clock.
        self.accepted_at: list[float] = []
        #: The number of rejected POSTs by status code; "none" for a failed connection.
        self.refused: Counter[str] = Counter()
        self.details: Counter[str] = Counter()
        #: The seconds that the slowest response took.
        self.slowest = 0.0
        self._bodies = list(bodies)
        self._interval = 1 / per_second
        self._on_accepted = on_accepted or (lambda job_id: None)
        self._posts: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        """Submit no further job, and wait for the pending responses."""
        await super().stop()
        if self._posts:
            await asyncio.wait(self._posts)

    async def more(self, count: int, timeout: float = 40) -> None:
        """Wait until this many more jobs have been accepted."""
        target = len(self.accepted) + count
        await eventually(lambda: len(self.accepted) >= target, timeout, lambda: f"jobs are accepted; {self.refused}")

    def longest_pause(self) -> float:
        """Return the longest time between two accepted jobs, in seconds."""
        times = sorted(self.accepted_at)
        return max((later - sooner for sooner, later in itertools.pairwise(times)), default=0.0)

    async def all_end(self, database_url: str, timeout: float = 60) -> dict[str, str]:
        """Wait until the row of every accepted job has a terminal state, and return the statuses by job."""

        async def finished() -> dict[str, str] | None:
            rows = await statuses(database_url, self.accepted)
            unfinished = [job for job in self.accepted if rows.get(job) not in {"completed", "failed", "canceled"}]
            assert not unfinished, f"{len(unfinished)} of {len(self.accepted)} are not finished: {unfinished[:5]}"
            return rows or {"": ""}

        return await eventually(finished, timeout, "every accepted job is finished")

    async def _run(self) -> None:
        number = 0
        due = time.monotonic()
        while True:
            client, body = self._clients[number % len(self._clients)], self._bodies[number % len(self._bodies)]
            task = asyncio.create_task(self._post(client, body))
            self._posts.add(task)
            task.add_done_callback(self._posts.discard)
            number += 1
            due = max(due + self._interval, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        began = time.monotonic()
        try:
            response = await client.post("/jobs", json=body)
        except httpx.HTTPError:
            self.refused["none"] += 1
            return
        self.slowest = max(self.slowest, time.monotonic() - began)
        if response.status_code != 202:
            self.refused[str(response.status_code)] += 1
            self.details[response.json()["detail"]] += 1
            return
        job_id = response.json()["job_id"]
        self.accepted.append(job_id)
        self.accepted_at.append(time.monotonic())
        self.bodies[job_id] = body
        if body.get("fail_at_stage"):
            self.to_fail.add(job_id)
        self._on_accepted(job_id)


@asynccontextmanager
async def followed_load(system: System, newest: int) -> AsyncIterator[tuple[Load, Follower]]:
    """Start all services, submit 10 jobs per second, and follow the newest ones; begins once 10 jobs are accepted.

    The mock stages take a twentieth of their time.
    """
    system.env["HEIMDEX_MOCK_TIME_SCALE"] = "0.05"
    system.start_all()
    await system.ready()
    async with (
        Follower([system.url], newest) as follower,
        Load([system.url], per_second=10, on_accepted=follower.add) as load,
    ):
        await load.more(10)
        yield load, follower
