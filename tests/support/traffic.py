"""Everything that callers do with jobs, at once, at two gateways; and what must be true of each answer they got."""

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

#: What a story of each kind does with its job; the first one often.
KINDS = ("plain", "plain", "plain", "plain", "canceled", "canceled", "retried", "keyed", "later", "called")


class Traffic:
    """Begins `per_second` stories a second, of all kinds, each with a job of the type `counted`, until `stop`.

    `wrong` collects each answer that was not true. An answer of 500 promises nothing, and is counted in `unanswered`.
    """

    def __init__(self, urls: Sequence[str], seed: int, per_second: float, callback_url: str) -> None:
        self.wrong: list[str] = []
        self.unanswered: Counter[str] = Counter()
        #: Jobs by the kind of their story. Those that were answered with 202 only.
        self.jobs: dict[str, list[str]] = {kind: [] for kind in KINDS}
        #: Answered that they are canceled; asked to be, with or without an answer.
        self.canceled: set[str] = set()
        self.cancel_asked: set[str] = set()
        #: Answered that they run again.
        self.retried: set[str] = set()
        self.follower = Follower(urls, newest=40)
        # A gateway closes a connection that was silent for 5 s, and may do so as the next request is on its way.
        limits = httpx.Limits(keepalive_expiry=1)
        self._clients = [httpx.AsyncClient(base_url=url, timeout=20, trust_env=False, limits=limits) for url in urls]
        self._chance = random.Random(seed)
        self._pause = 1 / per_second
        self._callback_url = callback_url
        self._stories: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._tell: dict[str, Callable[[], Awaitable[None]]] = {
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
        """All of them."""
        return [job_id for jobs in self.jobs.values() for job_id in jobs]

    async def burst(self, port: int, count: int) -> None:
        """So many plain jobs at this gateway, as fast as it takes them: hand-overs follow their delivery at once."""
        refused: Counter[int] = Counter()
        await post_all(port, count, self.jobs["plain"], refused)
        if not set(refused) <= {500}:
            self.wrong.append(f"POST /jobs answered {dict(refused)}")
        self.unanswered["a burst 500"] += refused.total()

    async def stop(self, timeout: float = 90) -> None:
        """Begin no more stories, and wait until each has come to its end."""
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await eventually(lambda: not self._stories, timeout, lambda: f"{len(self._stories)} stories come to their end")

    async def _run(self) -> None:
        number = 0
        due = time.monotonic()
        while True:
            story = asyncio.create_task(self._guarded(KINDS[number % len(KINDS)]))  # type: ignore[arg-type]
            self._stories.add(story)
            story.add_done_callback(self._stories.discard)
            number += 1
            due = max(due + self._pause, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _guarded(self, kind: str) -> None:
        try:
            await self._tell[kind]()
        except Exception as error:
            self.wrong.append(f"{kind}: {error!r}")

    async def _post(self, path: str, body: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
        """At one of the gateways."""
        answer = await self._chance.choice(self._clients).post(path, json=body, headers=headers)
        if answer.status_code >= 500:
            where = path if path == "/jobs" else path.rpartition("/")[2]
            self.unanswered[f"{where} {answer.status_code}: {answer.json()['detail']}"] += 1
        return answer

    async def _submit(self, kind: str, headers: dict[str, str] | None = None, **fields: Any) -> str | None:
        answer = await self._post("/jobs", {"type": "counted", **fields}, **(headers or {}))
        if answer.status_code >= 500:
            return None
        if answer.status_code != 202:
            self.wrong.append(f"POST /jobs answered {answer.status_code}: {answer.text}")
            return None
        job_id = str(answer.json()["job_id"])
        if job_id not in self.jobs[kind]:
            self.jobs[kind].append(job_id)
        return job_id

    async def _change(self, path: str, kind: str, job_id: str, *expected: int) -> bool:
        """Whether it was answered as done. An answer that is none of `expected` (500 always is) is wrong."""
        answer = await self._post(path)
        if answer.status_code < 500 and answer.status_code not in {200, 202, *expected}:
            self.wrong.append(f"{kind} {job_id} answered {answer.status_code}: {answer.text}")
        return answer.status_code in {200, 202}

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
            await asyncio.sleep(0.2)  # it waits for half a minute if nobody cancels it

    async def _retry(self) -> None:
        # Not followed: its second run is a step back on purpose.
        job_id = await self._submit("retried", fail_at_stage="second")
        if job_id is None:
            return

        async def failed() -> bool:
            return await self._status(job_id) == "failed"

        await eventually(failed, 60, f"{job_id} fails as it was asked to")
        unsure: tuple[int, ...] = ()
        while not await self._change(f"/jobs/{job_id}/retry", "a retry of", job_id, *unsure):
            if unsure and await self._status(job_id) not in {"failed", ""}:
                return  # it was stored, unheard
            unsure = (409,)
            await asyncio.sleep(0.2)
        self.retried.add(job_id)

    async def _keyed(self) -> None:
        key = str(uuid.UUID(int=self._chance.getrandbits(128)))
        found = await asyncio.gather(*(self._submit("keyed", {"Idempotency-Key": key}) for _ in range(3)))
        ids = {job_id for job_id in found if job_id}
        if again := await self._submit("keyed", {"Idempotency-Key": key}):
            ids.add(again)
        if len(ids) > 1:
            self.wrong.append(f"one key made {len(ids)} jobs: {ids}")
        self.follower.add(*ids)

    async def _status(self, job_id: str) -> str:
        """ "" where it cannot be told."""
        answer = await self._chance.choice(self._clients).get(f"/jobs/{job_id}")
        if answer.status_code >= 500:
            self.unanswered[f"GET {answer.status_code}: {answer.json()['detail']}"] += 1
            return ""
        if answer.status_code != 200:
            self.wrong.append(f"GET of the accepted {job_id} answered {answer.status_code}: {answer.text}")
            return ""
        return str(answer.json()["status"])
