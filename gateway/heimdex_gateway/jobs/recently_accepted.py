"""What this gateway accepted in the last seconds, for a stream that loses it before the status store has recorded it.

An operator who removes a consumer or a stream, or sets a limit on one, destroys messages at once, also those of jobs
that were answered with 202 a moment before. Those that are in no place any more are published again from here.
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

#: Longer than a removal can go unnoticed: NATS says so at once, and every service looks every 10 s.
KEPT_SECONDS: Final = 15.0
#: More jobs than one gateway accepts in that time; of more, the newest are kept.
MOST: Final = 20_000
#: How long Postgres, which may have recorded them, is waited for.
RESTORED_WITHIN_SECONDS: Final = 120.0


class RecentlyAccepted:
    """Of one gateway."""

    def __init__(self, publisher: Publisher, database: Database, log: Logger) -> None:
        self._publisher = publisher
        self._database = database
        self._log = log
        self._jobs: deque[tuple[float, Due]] = deque(maxlen=MOST)

    def add(self, jobs: Iterable[Due]) -> None:
        """NATS has stored them."""
        now = asyncio.get_running_loop().time()
        while self._jobs and self._jobs[0][0] < now - KEPT_SECONDS:
            self._jobs.popleft()
        self._jobs.extend((now, job) for job in jobs)

    async def restore(self) -> None:
        """Publish again those that neither the stream nor Postgres has."""
        now = asyncio.get_running_loop().time()
        jobs = [job for at, job in self._jobs if at >= now - KEPT_SECONDS]
        restored = 0
        for number, job in enumerate(jobs):
            try:
                restored += await self._restore_if_gone(job, now + RESTORED_WITHIN_SECONDS)
            except (DatabaseUnavailable, BrokerUnavailable, JetStreamError, Refused) as error:
                self._log.error(
                    "accepted_jobs_unchecked",
                    message="whether a removal destroyed jobs that were accepted just before cannot be known now",
                    count=len(jobs) - number,
                    reason=str(error),
                )
                break
        if restored:
            self._log.warning(
                "accepted_jobs_restored",
                message="published jobs again that were accepted just before a removal destroyed them",
                count=restored,
            )

    async def _restore_if_gone(self, job: Due, deadline: float) -> bool:
        """Raises DatabaseUnavailable, BrokerUnavailable, JetStreamError or Refused after the deadline."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                if await self._publisher.last(job.job_id) is not None:
                    return False
                if await self._database.job(job.job_id, job.tenant) is not None:
                    return False  # the status store has recorded it, and restores what is not ended
                await self._publisher.publish(msgspec.structs.replace(job, reason="restored"), expected=0)
            except Superseded:
                return False
            except (DatabaseUnavailable, BrokerUnavailable, JetStreamError, Refused):
                if loop.time() > deadline:
                    raise
                await asyncio.sleep(0.5)
            else:
                return True
