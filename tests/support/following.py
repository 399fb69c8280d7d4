"""Polls jobs as clients do, and records every step backwards, which the API must never show, whatever is killed."""

import asyncio
import json
import time
from collections.abc import Iterable
from typing import Any, Final

import httpx

from heimdex_contracts import pipelines
from tests.support.background import BackgroundRequests
from tests.support.pipelines import with_pipelines

_ORDER: Final = {"pending": 0, "processing": 1, "completed": 2, "failed": 2, "canceled": 2}
#: The contract limits a GET to 5 s; a busy test machine gets more.
_GET_SECONDS: Final = 20.0


class Follower(BackgroundRequests):
    """Polls every added job until it is closed, at each of these gateways in turn.

    `backwards` collects the contradictions. Responses of 500 and connection errors are only counted, in `unanswered`.

    newest: polls only this many of the jobs that were added last. pause: seconds between two rounds.
    """

    def __init__(self, urls: Iterable[str], newest: int | None = None, pause: float = 0.05) -> None:
        super().__init__(urls, _GET_SECONDS)
        self.latest: dict[str, dict[str, Any]] = {}
        self.backwards: list[str] = []
        self.asked = 0
        self.unanswered = 0
        #: The seconds that the slowest response took.
        self.slowest = 0.0
        self._jobs: list[str] = []
        #: The gateway and the time of the latest response, by job.
        self._sources: dict[str, str] = {}
        self._began = time.monotonic()
        self._newest = newest
        self._pause = pause
        known = pipelines.load(with_pipelines("behaviours", "scripted", "counted")["HEIMDEX_PIPELINES"].split(","))
        self._stages = {name: index for one in known.by_type.values() for index, name in enumerate(one.stage_names)}

    def add(self, *job_ids: str) -> None:
        """Poll these jobs from now on, also in a terminal state."""
        self._jobs += job_ids

    def seen(self, job_id: str) -> dict[str, Any]:
        """Return the latest response for this job, or {} when there is none yet."""
        return self.latest.get(job_id, {})

    def check(self) -> None:
        """Raise AssertionError when a response contradicted an earlier one, or a job was unknown."""
        assert not self.backwards, f"{len(self.backwards)} steps backwards: {self.backwards[:5]}"

    async def _run(self) -> None:
        number = 0
        while True:
            jobs = self._jobs if self._newest is None else self._jobs[-self._newest :]
            for job_id in list(jobs):
                number += 1
                await self._poll(self._clients[number % len(self._clients)], job_id)
            await asyncio.sleep(self._pause)

    async def _poll(self, client: httpx.AsyncClient, job_id: str) -> None:
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
            self.backwards.append(f"{job_id} returned {response.status_code}: {response.text}")
            return
        job = response.json()
        for wrong in self.compare(self.latest.get(job_id), job):
            sources = f"{self._sources.get(job_id)}, then {client.base_url} at {began - self._began:.1f} s"
            self.backwards.append(f"{wrong} ({sources}): {json.dumps(self.latest.get(job_id))} then {json.dumps(job)}")
        self.latest[job_id] = job
        self._sources[job_id] = f"{client.base_url} at {began - self._began:.1f} s"

    def compare(self, before: dict[str, Any] | None, after: dict[str, Any]) -> list[str]:
        """Return the fields of a response that contradict an earlier one, or each other."""
        wrong = []
        if after["updated_at"] < after["created_at"]:
            wrong.append("updated before created")
        if (after["progress"] == 100) != (after["status"] == "completed"):
            wrong.append("progress 100 is completed")
        if before is None:
            return wrong
        if _ORDER[after["status"]] < _ORDER[before["status"]]:
            wrong.append("status")
        # A tick in flight may still move `updated_at`, and the progress of a canceled job: forwards only, see below.
        moving = {"updated_at", "progress"} if before["status"] == "canceled" else {"updated_at"}
        if _ORDER[before["status"]] == 2 and before | {key: after[key] for key in moving} != after:
            wrong.append("changed in a terminal state")
        if after["progress"] < before["progress"]:
            wrong.append("progress")
        if after["updated_at"] < before["updated_at"]:
            wrong.append("updated_at")
        if after["created_at"] != before["created_at"]:
            wrong.append("created_at")
        if self._stages.get(after["stage"], -1) < self._stages.get(before["stage"], -1):
            wrong.append("stage")
        return wrong
