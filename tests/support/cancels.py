"""Clients that cancel some of the jobs of a load, at random times."""

import asyncio
import random
from contextlib import suppress
from typing import Self

import httpx

from tests.support.load import Load


class Cancels:
    """Cancels about one job per second, at each of these gateways in turn.

    `done` has the jobs whose cancel succeeded. `unknown` has every job for which a cancel was sent: without a response,
    or with a 500, its result is unknown.
    """

    def __init__(self, urls: list[str], load: Load, seed: int) -> None:
        self.done: set[str] = set()
        self.unknown: set[str] = set()
        self._clients = [httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) for url in urls]
        self._load = load
        self._random = random.Random(seed)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        for client in self._clients:
            await client.aclose()

    async def stop(self) -> None:
        """Cancel no further job. The result of a cancel without a response by now is unknown."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

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
