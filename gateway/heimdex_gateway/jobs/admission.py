"""Admission control: counts the unfinished jobs and refuses new ones before JetStream would."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from heimdex_contracts import subjects
from heimdex_contracts.errors import BrokerUnavailable, HeimdexError
from heimdex_contracts.runtime.jetstream.connection import Broker, JetStreamError

#: Maximum age of a count, in seconds. The jobs that this gateway has accepted since are added to it.
RENEW_AFTER_SECONDS: Final = 1.0
RETRY_AFTER_SECONDS: Final = 5


class QueueFull(HeimdexError):
    """The number of unfinished jobs has reached the limit. The text gives both numbers."""


class Admission:
    """Admission control of one gateway. most: the maximum number of unfinished jobs.

    Several gateways together can exceed it by the jobs of about one second: it is a safeguard, not a quota.
    """

    def __init__(self, broker: Broker, stages: tuple[str, ...], most: int) -> None:
        self._broker = broker
        self._stages = stages
        self._most = most
        self._counted = 0
        #: Jobs stored since the count.
        self._accepted = 0
        #: Jobs that are being published.
        self._publishing = 0
        self._counted_at = float("-inf")
        self._counting: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def reserve(self, jobs: int = 1) -> AsyncIterator[None]:
        """Reserve capacity while jobs are published. They count as accepted if that succeeds. Raises QueueFull."""
        age = asyncio.get_running_loop().time() - self._counted_at
        if age > RENEW_AFTER_SECONDS:
            self._count()
        if self._used + jobs > self._most:
            for _ in range(2):
                # A count that is already in progress may count jobs twice that are stored meanwhile; the next does not.
                if self._used + jobs > self._most:
                    await asyncio.wait({self._count()})
            if self._used + jobs > self._most:
                raise QueueFull(
                    f"The queue is full: {self._used} jobs are waiting or running, and the limit is {self._most}. "
                    "Try again later."
                )
        self._publishing += jobs
        try:
            yield
            self._accepted += jobs
        finally:
            self._publishing -= jobs

    @property
    def _used(self) -> int:
        return self._counted + self._accepted + self._publishing

    def _count(self) -> asyncio.Task[None]:
        if self._counting is None or self._counting.done():
            self._counting = asyncio.create_task(self._update_count())
        return self._counting

    async def _update_count(self) -> None:
        before = self._accepted
        try:
            infos = await asyncio.gather(
                *(self._broker.api(f"CONSUMER.INFO.{subjects.JOBS}.{stage}", timeout=1.0) for stage in self._stages)
            )
        except (BrokerUnavailable, JetStreamError):
            return  # the old count stays in use; the publish will fail with the cause
        # An unfinished job is either pending at one stage or held by a worker of that stage.
        self._counted = sum(info["num_pending"] + info["num_ack_pending"] for info in infos)
        self._accepted -= before
        self._counted_at = asyncio.get_running_loop().time()
