"""A task that sends requests to several gateways in the background of a test."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from typing import Self

import httpx


class BackgroundRequests(ABC):
    """Runs `_run` in a task from the entry of the context to its exit, with one HTTP client per gateway.

    timeout: the seconds that one request may take.
    """

    def __init__(self, urls: Iterable[str], timeout: float = 20.0) -> None:
        self._clients = [httpx.AsyncClient(base_url=url, timeout=timeout, trust_env=False) for url in urls]
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        for client in self._clients:
            await client.aclose()

    async def stop(self) -> None:
        """Send no further request, and drop the pending request of the task. May be called twice."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @abstractmethod
    async def _run(self) -> None:
        """Send requests until the task is canceled."""
