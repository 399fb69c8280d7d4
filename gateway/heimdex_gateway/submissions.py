"""Accepts jobs: one publish, answered only after JetStream has stored it."""

import asyncio
from typing import Final

import uuid_utils

from heimdex_contracts import messages, tracing
from heimdex_contracts.messages import Due
from heimdex_gateway.schemas import JobRequest
from heimdex_gateway.service import Gateway

#: Of the 5 s that an answer may take at most.
TIMEOUT_SECONDS: Final = 4.0


async def submit(gateway: Gateway, request: JobRequest, traceparent: str | None) -> str:
    """Publish the job to its first stage; returns its id, a UUID of version 7 (ordered by time).

    Raises BrokerUnavailable when NATS did not store it in time (whether it did later is then not known), NoRoom or
    Refused when there is no room for it.
    """
    at = messages.now()
    job = Due(
        job_id=str(uuid_utils.uuid7()),
        type=request.type,
        step=0,
        created_at=at,
        at=at,
        fail_at_stage=request.fail_at_stage,
        stage=gateway.pipelines.by_type[request.type].first_stage,
        reason="submitted",
        trace=tracing.start(traceparent),
    )
    async with gateway.room.taken():
        await gateway.publisher.publish(job, expected=0, deadline=asyncio.get_running_loop().time() + TIMEOUT_SECONDS)
    return job.job_id
