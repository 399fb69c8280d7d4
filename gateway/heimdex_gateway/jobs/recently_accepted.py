"""Jobs that this gateway accepted in the last seconds, kept in case the stream loses them before they are recorded.

An operator who removes a consumer or a stream, or sets a limit on one, destroys messages at once. Among them can be
jobs that were accepted with 202 a moment before and that the status store has not recorded yet. This module publishes
again those that are neither in the stream nor in Postgres.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Final

import msgspec

from heimdex_contracts.errors import BrokerUnavailable, Superseded
from heimdex_contracts.messages import Due
from heimdex_contracts.runtime.jetstream.connection import JetStreamError
from heimdex_contracts.runtime.jetstream.publisher import Publisher, Refused
from heimdex_contracts.runtime.logs import Logger
from heimdex_gateway.jobs.repository import Database, DatabaseUnavailable

#: Longer than a removal can go unnoticed: NATS reports it at once, and every service checks every 10 s.
KEPT_SECONDS: Final = 15.0
#: More jobs than one gateway accepts in that time. If there are more, the newest are kept.
MOST: Final = 20_000
#: The most that their params have together. If there are more, the newest are kept.
MOST_PARAMS_BYTES: Final = 64 * 1024 * 1024
#: How long to wait for Postgres, which may have recorded the jobs.
RESTORED_WITHIN_SECONDS: Final = 120.0


class RecentlyAccepted:
    """The jobs that one gateway accepted in the last KEPT_SECONDS, at most MOST of them, with MOST_PARAMS_BYTES."""

    def __init__(self, publisher: Publisher, database: Database, log: Logger) -> None:
        self._publisher = publisher
        self._database = database
        self._log = log
        self._jobs: deque[tuple[float, Due]] = deque()
        self._params_bytes = 0

    def add(self, jobs: Iterable[Due]) -> None:
        """Remember jobs that NATS has just stored."""
        now = asyncio.get_running_loop().time()
        for job in jobs:
            self._jobs.append((now, job))
            self._params_bytes += len(memoryview(job.params))
        while self._jobs and (
            self._jobs[0][0] < now - KEPT_SECONDS or len(self._jobs) > MOST or self._params_bytes > MOST_PARAMS_BYTES
        ):
            self._params_bytes -= len(memoryview(self._jobs.popleft()[1].params))

    async def restore(self) -> None:
        """Publish the jobs again that are neither in the stream nor in Postgres. Called after a removal."""
        now = asyncio.get_running_loop().time()
        jobs = [job for at, job in self._jobs if at >= now - KEPT_SECONDS]
        restored = 0
        for number, job in enumerate(jobs):
            try:
                restored += await self._restore_if_gone(job, now + RESTORED_WITHIN_SECONDS)
            except (DatabaseUnavailable, BrokerUnavailable, JetStreamError, Refused) as error:
                self._log.error(
                    "accepted_jobs_unchecked",
                    message="it cannot be determined now whether a removal destroyed jobs accepted just before",
                    count=len(jobs) - number,
                    reason=str(error),
                )
                break
        if restored:
            self._log.warning(
                "accepted_jobs_restored",
                message="published jobs again that a removal had destroyed just after they were accepted",
                count=restored,
            )

    async def _restore_if_gone(self, job: Due, deadline: float) -> bool:
        """Publish the job again if neither the stream nor Postgres has it. Returns whether it was published.

        Retries until the deadline, then raises DatabaseUnavailable, BrokerUnavailable, JetStreamError or Refused.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                if await self._publisher.last(job.job_id) is not None:
                    return False
                if await self._database.job(job.job_id, job.tenant) is not None:
                    return False  # the status store has recorded it, and restores it if it is unfinished
                await self._publisher.publish(msgspec.structs.replace(job, reason="restored"), expected=0)
            except Superseded:
                return False
            except (DatabaseUnavailable, BrokerUnavailable, JetStreamError, Refused):
                if loop.time() > deadline:
                    raise
                await asyncio.sleep(0.5)
            else:
                return True
