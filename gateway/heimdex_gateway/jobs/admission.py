"""Whether there is room for more jobs: counts the unfinished ones, and refuses before the broker would."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from heimdex_contracts import subjects
from heimdex_contracts.errors import BrokerUnavailable, HeimdexError
from heimdex_contracts.runtime.jetstream.connection import Broker, JetStreamError

#: How old a count may be; what this gateway accepted since is added to it.
RENEW_AFTER_SECONDS: Final = 1.0
RETRY_AFTER_SECONDS: Final = 5


class QueueFull(HeimdexError):
    """As many jobs are unfinished as are allowed."""


class Admission:
    """Of one gateway. Several may together accept a second's worth too many: the limit is a safeguard, no quota."""

    def __init__(self, broker: Broker, stages: tuple[str, ...], most: int) -> None:
        self._broker = broker
        self._stages = stages
        self._most = most
        self._counted = 0
        #: Stored since the count, and on the way.
        self._accepted = 0
        self._publishing = 0
        self._counted_at = float("-inf")
        self._counting: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def reserve(self, jobs: int = 1) -> AsyncIterator[None]:
        """Room for so many jobs while they are published; counted in when that succeeds. Raises QueueFull."""
        age = asyncio.get_running_loop().time() - self._counted_at
        if age > RENEW_AFTER_SECONDS:
            self._count()
        if self._used + jobs > self._most:
            for _ in range(2):
                # A count that is under way may count what was stored meanwhile twice; the one after it does not.
                if self._used + jobs > self._most:
                    await asyncio.wait({self._count()})
            if self._used + jobs > self._most:
                raise QueueFull(
                    f"{self._used} jobs are waiting or running, and {self._most} are allowed: "
                    "try again when some have ended."
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
            self._counting = asyncio.create_task(self._ask())
        return self._counting

    async def _ask(self) -> None:
        before = self._accepted
        try:
            infos = await asyncio.gather(
                *(self._broker.api(f"CONSUMER.INFO.{subjects.JOBS}.{stage}", timeout=1.0) for stage in self._stages)
            )
        except (BrokerUnavailable, JetStreamError):
            return  # the publish will say what is the matter
        # An unfinished job waits at one stage, or is held by one of its workers.
        self._counted = sum(info["num_pending"] + info["num_ack_pending"] for info in infos)
        self._accepted -= before
        self._counted_at = asyncio.get_running_loop().time()
