"""Follows jobs as callers do, and notes every step backwards: what the API must never show, whatever is killed."""

import asyncio
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, Self

import httpx

from heimdex_contracts import pipelines
from tests.support.pipelines import with_pipelines

_ORDER: Final = {"pending": 0, "processing": 1, "completed": 2, "failed": 2, "canceled": 2}
#: The longest that a GET may take by the contract is 5 s; a busy test machine gets more.
_GET_SECONDS: Final = 20.0


class Follower:
    """Asks for every job that was added, over and over, in turn at each of these gateways.

    `backwards` collects what was wrong; answers of 500 and refused connections are counted, not wrong.
    """

    def __init__(self, urls: Iterable[str], newest: int | None = None, pause: float = 0.05) -> None:
        self.latest: dict[str, dict[str, Any]] = {}
        self.backwards: list[str] = []
        self.asked = 0
        self.unanswered = 0
        #: Seconds that the slowest answer took.
        self.slowest = 0.0
        self._clients = [httpx.AsyncClient(base_url=url, timeout=_GET_SECONDS, trust_env=False) for url in urls]
        self._jobs: list[str] = []
        self._tellers: dict[str, str] = {}
        self._began = time.monotonic()
        self._newest = newest
        self._pause = pause
        self._task: asyncio.Task[None] | None = None
        known = pipelines.load(with_pipelines("behaviours", "scripted", "counted")["HEIMDEX_PIPELINES"].split(","))
        self._stages = {name: index for one in known.by_type.values() for index, name in enumerate(one.stage_names)}

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        for client in self._clients:
            await client.aclose()

    def add(self, *job_ids: str) -> None:
        """Follow these jobs, to their end and on."""
        self._jobs += job_ids

    def seen(self, job_id: str) -> dict[str, Any]:
        """What was last told of this job; nothing: {}."""
        return self.latest.get(job_id, {})

    def check(self) -> None:
        """Nothing ran backwards, nothing accepted was unknown."""
        assert not self.backwards, f"{len(self.backwards)} steps backwards: {self.backwards[:5]}"

    async def _run(self) -> None:
        number = 0
        while True:
            jobs = self._jobs if self._newest is None else self._jobs[-self._newest :]
            for job_id in list(jobs):
                number += 1
                await self._ask(self._clients[number % len(self._clients)], job_id)
            await asyncio.sleep(self._pause)

    async def _ask(self, client: httpx.AsyncClient, job_id: str) -> None:
        began = time.monotonic()
        self.asked += 1
        try:
            response = await client.get(f"/jobs/{job_id}")
        except httpx.HTTPError:
            self.unanswered += 1
            return
        self.slowest = max(self.slowest, time.monotonic() - began)
        if response.status_code == 500:
            assert response.json()["detail"]
            self.unanswered += 1
            return
        if response.status_code != 200:
            self.backwards.append(f"{job_id} answered {response.status_code}: {response.text}")
            return
        job = response.json()
        for wrong in self.compare(self.latest.get(job_id), job):
            teller = f"{self._tellers.get(job_id)}, then {client.base_url} at {began - self._began:.1f} s"
            self.backwards.append(f"{wrong} ({teller}): {json.dumps(self.latest.get(job_id))} then {json.dumps(job)}")
        self.latest[job_id] = job
        self._tellers[job_id] = f"{client.base_url} at {began - self._began:.1f} s"

    def compare(self, before: dict[str, Any] | None, after: dict[str, Any]) -> list[str]:
        """What of this answer contradicts an earlier one, or itself."""
        wrong = []
        if after["updated_at"] < after["created_at"]:
            wrong.append("updated before created")
        if (after["progress"] == 100) != (after["status"] == "completed"):
            wrong.append("progress 100 is completed")
        if before is None:
            return wrong
        if _ORDER[after["status"]] < _ORDER[before["status"]]:
            wrong.append("status")
        # A tick that was under way may still move the time, and the progress of a canceled job: forwards, see below.
        moving = {"updated_at", "progress"} if before["status"] == "canceled" else {"updated_at"}
        if _ORDER[before["status"]] == 2 and before | {key: after[key] for key in moving} != after:
            wrong.append("changed after its end")
        if after["progress"] < before["progress"]:
            wrong.append("progress")
        if after["updated_at"] < before["updated_at"]:
            wrong.append("updated_at")
        if after["created_at"] != before["created_at"]:
            wrong.append("created_at")
        if self._stages.get(after["stage"], -1) < self._stages.get(before["stage"], -1):
            wrong.append("stage")
        return wrong
