"""Waits until a job is finished, so that a caller does not have to poll."""

import asyncio
from collections.abc import Collection
from typing import Final

from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.lifecycle import TERMINAL, Snapshot, snapshot
from heimdex_contracts.runtime.backoff import repeat
from heimdex_gateway.jobs.status import NATS_DOWN, StateUnavailable, StatusReader
from heimdex_gateway.jobs.subscriptions import Interrupted, Subscriptions

#: How long to wait, after the terminal event arrived, until a plain GET returns the terminal state too.
RECORDED_WITHIN_SECONDS: Final = 2.0


async def until_finished(
    status: StatusReader,
    subscriptions: Subscriptions,
    tenant: str,
    job_id: str,
    timeout: float,
    include: Collection[str] = (),
) -> Snapshot | None:
    """Return the job when it is finished, or its state after `timeout` seconds; None if the tenant has no such job.

    include: as in StatusReader.job. Raises StateUnavailable, as StatusReader.job does, and if NATS fails while the job
    is unfinished.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    try:
        return await _watch(status, subscriptions, tenant, job_id, deadline, include)
    except BrokerUnavailable:
        job = await status.job(job_id, tenant, include)
        if job is None or job.ended:
            return job
        raise StateUnavailable(NATS_DOWN) from None


async def _watch(
    status: StatusReader,
    subscriptions: Subscriptions,
    tenant: str,
    job_id: str,
    deadline: float,
    include: Collection[str],
) -> Snapshot | None:
    loop = asyncio.get_running_loop()
    async with subscriptions.open(job_id, ticks=False) as watch:
        job = await status.job(job_id, tenant, include)
        if job is None or job.ended:
            return job
        try:
            while (left := deadline - loop.time()) > 0:
                event = await watch.next(left)
                if event is not None and snapshot(event).status in TERMINAL:
                    break
        except Interrupted:
            # The gateway is stopping, or lost its connection to NATS. Return the current state; the caller can
            # repeat the request.
            return await status.job(job_id, tenant, include)
    async for _ in repeat(0.01, 0.01, until=min(deadline, loop.time() + RECORDED_WITHIN_SECONDS)):
        job = await status.job(job_id, tenant, include)
        if job is None or job.ended:
            break
    return job
