"""Waits for a job's end, for a caller who would otherwise ask again and again."""

import asyncio
from typing import Final

from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.lifecycle import TERMINAL, Snapshot, snapshot
from heimdex_gateway.dependencies import Gateway
from heimdex_gateway.errors import Problem
from heimdex_gateway.jobs.status import NATS_DOWN, Unanswerable
from heimdex_gateway.jobs.subscriptions import Interrupted

LONGEST_SECONDS: Final = 300.0
#: How long the end that was heard may take to be shown by a plain GET too.
RECORDED_WITHIN_SECONDS: Final = 2.0


def seconds(text: str | None) -> float:
    """The parameter `wait`, 0 where it is absent. Raises Problem 422."""
    if text is None:
        return 0.0
    try:
        value = float(text) if text.isascii() and "_" not in text else -1.0
    except ValueError:
        value = -1.0
    if not 0 <= value <= LONGEST_SECONDS:
        raise Problem(
            422, f"The parameter 'wait' must be seconds from 0 to {LONGEST_SECONDS:g}, not {text[:60]!r}.", field="wait"
        )
    return value


async def until_ended(gateway: Gateway, tenant: str, job_id: str, timeout: float) -> Snapshot | None:
    """The job when it has ended, or as it is after `timeout` seconds; None where there is none. Raises as Reads.job."""
    deadline = asyncio.get_running_loop().time() + timeout
    try:
        return await _watch(gateway, tenant, job_id, deadline)
    except BrokerUnavailable:
        job = await gateway.reads.job(job_id, tenant)
        if job is None or job.ended:
            return job
        raise Unanswerable(NATS_DOWN) from None


async def _watch(gateway: Gateway, tenant: str, job_id: str, deadline: float) -> Snapshot | None:
    loop = asyncio.get_running_loop()
    async with gateway.watches.open(job_id, ticks=False) as watch:
        job = await gateway.reads.job(job_id, tenant)
        if job is None or job.ended:
            return job
        try:
            while (left := deadline - loop.time()) > 0:
                event = await watch.next(left)
                if event is not None and snapshot(event).status in TERMINAL:
                    break
        except Interrupted:
            # The gateway stops, or was away: tell how it is now; the caller comes again.
            return await gateway.reads.job(job_id, tenant)
    recorded_by = loop.time() + RECORDED_WITHIN_SECONDS
    job = await gateway.reads.job(job_id, tenant)
    while loop.time() < min(recorded_by, deadline) and job is not None and not job.ended:
        await asyncio.sleep(0.01)
        job = await gateway.reads.job(job_id, tenant)
    return job
