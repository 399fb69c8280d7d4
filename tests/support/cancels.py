"""Clients that cancel some of the jobs of a load, at random times."""

import asyncio
import random

import httpx

from tests.support.background import BackgroundRequests
from tests.support.load import Load


class Cancels(BackgroundRequests):
    """Cancels about one job per second, at each of these gateways in turn.

    `done` has the jobs whose cancel succeeded. `unknown` has every job for which a cancel was sent: without a response,
    or with a 500, its result is unknown. So is the result of a cancel that `stop` drops.
    """

    def __init__(self, urls: list[str], load: Load, seed: int) -> None:
        super().__init__(urls)
        self.done: set[str] = set()
        self.unknown: set[str] = set()
        self._load = load
        self._random = random.Random(seed)

    async def _run(self) -> None:
        number = 0
        while True:
            await asyncio.sleep(self._random.uniform(0.3, 1.5))
            newest = self._load.accepted[-8:]
            if not newest:
                continue
            number += 1
            job_id = self._random.choice(newest)
            self.unknown.add(job_id)
            try:
                response = await self._clients[number % len(self._clients)].post(f"/jobs/{job_id}/cancel")
            except httpx.HTTPError:
                continue
            if response.status_code in {200, 202}:
                self.done.add(job_id)
            elif response.status_code != 500:
                assert response.status_code == 409, f"{response.status_code} {response.text}"
