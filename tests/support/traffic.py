"""Concurrent requests of all kinds to several gateways, with a check of every response."""

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Self

import httpx

from tests.support.following import Follower
from tests.support.rush import post_all
from tests.support.waiting import eventually

#: The kinds of stories, in the order in which they begin; a kind is as frequent as it is listed.
KINDS = ("plain", "plain", "plain", "plain", "canceled", "canceled", "retried", "keyed", "later", "called")


class Traffic:
    """Starts `per_second` stories per second until `stop`. A story submits a job of type `counted` and acts on it.

    `wrong` collects every wrong response. A 500 promises nothing about the job; it is counted in `unanswered`.
    """

    def __init__(self, urls: Sequence[str], seed: int, per_second: float, callback_url: str) -> None:
        self.wrong: list[str] = []
        self.unanswered: Counter[str] = Counter()
        #: The accepted jobs (202) by the kind of their story.
        self.jobs: dict[str, list[str]] = {kind: [] for kind in KINDS}
        #: The jobs whose cancel succeeded.
        self.canceled: set[str] = set()
        #: The jobs for which a cancel was sent, whatever the response.
        self.cancel_asked: set[str] = set()
        #: The jobs whose retry succeeded.
        self.retried: set[str] = set()
        self.follower = Follower(urls, newest=40)
        # A gateway closes a connection that was idle for 5 s, and may do so while the next request is on its way.
        limits = httpx.Limits(keepalive_expiry=1)
        self._clients = [httpx.AsyncClient(base_url=url, timeout=20, trust_env=False, limits=limits) for url in urls]
        self._chance = random.Random(seed)
        self._interval = 1 / per_second
        self._callback_url = callback_url
        self._stories: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._story_of: dict[str, Callable[[], Awaitable[None]]] = {
            "plain": self._plain,
            "canceled": self._cancel,
            "retried": self._retry,
            "keyed": self._keyed,
            "later": self._later,
            "called": self._called,
        }

    async def __aenter__(self) -> Self:
        await self.follower.__aenter__()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
        for story in self._stories:
            story.cancel()
        await self.follower.__aexit__()
        for client in self._clients:
            await client.aclose()

    @property
    def accepted(self) -> list[str]:
        """The ids of all accepted jobs."""
        return [job_id for jobs in self.jobs.values() for job_id in jobs]

    async def burst(self, port: int, count: int) -> None:
        """Submit this many plain jobs to this gateway as fast as it accepts them.

        Under such a load, the hand-over of a job follows its delivery at once.
        """
        refused: Counter[int] = Counter()
        await post_all(port, count, self.jobs["plain"], refused)
        if not set(refused) <= {500}:
            self.wrong.append(f"POST /jobs returned {dict(refused)}")
        self.unanswered["a burst 500"] += refused.total()

    async def stop(self, timeout: float = 90) -> None:
        """Start no further story, and wait until every running story has finished."""
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await eventually(lambda: not self._stories, timeout, lambda: f"{len(self._stories)} stories finish")

    async def _run(self) -> None:
        number = 0
        due = time.monotonic()
        while True:
            story = asyncio.create_task(self._guarded(KINDS[number % len(KINDS)]))  # type: ignore[arg-type]
            self._stories.add(story)
            story.add_done_callback(self._stories.discard)
            number += 1
            due = max(due + self._interval, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _guarded(self, kind: str) -> None:
        try:
            await self._story_of[kind]()
        except Exception as error:
            self.wrong.append(f"{kind}: {error!r}")

    async def _post(self, path: str, body: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
        """Send a POST to a random gateway, and count a response of 500 or more in `unanswered`."""
        response = await self._chance.choice(self._clients).post(path, json=body, headers=headers)
        if response.status_code >= 500:
            where = path if path == "/jobs" else path.rpartition("/")[2]
            self.unanswered[f"{where} {response.status_code}: {response.json()['detail']}"] += 1
        return response

    async def _submit(self, kind: str, headers: dict[str, str] | None = None, **fields: Any) -> str | None:
        response = await self._post("/jobs", {"type": "counted", **fields}, **(headers or {}))
        if response.status_code >= 500:
            return None
        if response.status_code != 202:
            self.wrong.append(f"POST /jobs returned {response.status_code}: {response.text}")
            return None
        job_id = str(response.json()["job_id"])
        if job_id not in self.jobs[kind]:
            self.jobs[kind].append(job_id)
        return job_id

    async def _change(self, path: str, kind: str, job_id: str, *expected: int) -> bool:
        """Send a cancel or retry. Returns whether it succeeded (200 or 202).

        A status below 500 that is not one of `expected` is recorded as wrong.
        """
        response = await self._post(path)
        if response.status_code < 500 and response.status_code not in {200, 202, *expected}:
            self.wrong.append(f"{kind} {job_id} returned {response.status_code}: {response.text}")
        return response.status_code in {200, 202}

    async def _plain(self) -> None:
        if job_id := await self._submit("plain"):
            self.follower.add(job_id)

    async def _later(self) -> None:
        if job_id := await self._submit("later", delay_seconds=1):
            self.follower.add(job_id)

    async def _called(self) -> None:
        if job_id := await self._submit("called", callback_url=self._callback_url):
            self.follower.add(job_id)

    async def _cancel(self) -> None:
        delay = self._chance.choice([{}, {}, {"delay_seconds": 30}])
        job_id = await self._submit("canceled", **delay)
        if job_id is None:
            return
        self.follower.add(job_id)
        await asyncio.sleep(self._chance.uniform(0, 0.3))
        self.cancel_asked.add(job_id)
        while True:
            if await self._change(f"/jobs/{job_id}/cancel", "a cancel of", job_id, 409):
                self.canceled.add(job_id)
                return
            if not delay or await self._status(job_id) in {"completed", "canceled"}:
                return
            await asyncio.sleep(0.2)  # the job does not start for 30 s unless it is canceled

    async def _retry(self) -> None:
        # Not followed: the second run moves the job's status backwards on purpose.
        job_id = await self._submit("retried", fail_at_stage="second")
        if job_id is None:
            return

        async def failed() -> bool:
            return await self._status(job_id) == "failed"

        await eventually(failed, 60, f"{job_id} fails at its stage 'second'")
        # After a 500 the retry may have been stored all the same, so that the next one may return 409.
        expected: tuple[int, ...] = ()
        while not await self._change(f"/jobs/{job_id}/retry", "a retry of", job_id, *expected):
            if expected and await self._status(job_id) not in {"failed", ""}:
                return  # it was stored, although the response was a 500
            expected = (409,)
            await asyncio.sleep(0.2)
        self.retried.add(job_id)

    async def _keyed(self) -> None:
        key = str(uuid.UUID(int=self._chance.getrandbits(128)))
        submitted = await asyncio.gather(*(self._submit("keyed", {"Idempotency-Key": key}) for _ in range(3)))
        ids = {job_id for job_id in submitted if job_id}
        if again := await self._submit("keyed", {"Idempotency-Key": key}):
            ids.add(again)
        if len(ids) > 1:
            self.wrong.append(f"one Idempotency-Key created {len(ids)} jobs: {ids}")
        self.follower.add(*ids)

    async def _status(self, job_id: str) -> str:
        """Return the status of a job, or "" when it cannot be determined."""
        response = await self._chance.choice(self._clients).get(f"/jobs/{job_id}")
        if response.status_code >= 500:
            self.unanswered[f"GET {response.status_code}: {response.json()['detail']}"] += 1
            return ""
        if response.status_code != 200:
            self.wrong.append(f"GET of the accepted {job_id} returned {response.status_code}: {response.text}")
            return ""
        return str(response.json()["status"])
