"""Accepts jobs: one publish, or one atomic batch, answered only after JetStream has stored it."""

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec
import uuid_utils

from heimdex_contracts import messages, tracing
from heimdex_contracts.errors import Superseded
from heimdex_contracts.messages import Due
from heimdex_gateway.dependencies import Gateway

#: Of the 5 s that an answer may take at most.
TIMEOUT_SECONDS: Final = 4.0


class JobRequest(msgspec.Struct, frozen=True):
    """What a caller asks for. `not_before`: None for now. `callback_url`: its host is not looked up yet."""

    type: str
    fail_at_stage: str | None
    not_before: datetime | None
    callback_url: str | None = None


def new_job(gateway: Gateway, tenant: str, request: JobRequest, traceparent: str | None) -> Due:
    """The first message of the tenant's job, with an id of its own: a UUID of version 7, ordered by time."""
    at = messages.now()
    return Due(
        job_id=str(uuid_utils.uuid7()),
        type=request.type,
        tenant=tenant,
        step=0,
        created_at=at,
        at=at,
        fail_at_stage=request.fail_at_stage,
        not_before=request.not_before,
        stage=gateway.pipelines.by_type[request.type].first_stage,
        reason="submitted",
        trace=tracing.start(traceparent),
        callback_url=request.callback_url,
    )


async def submit(gateway: Gateway, job: Due) -> None:
    """Publish the job to its first stage, or for later.

    Raises BrokerUnavailable when NATS did not store it in time (whether it did later is then not known), QueueFull or
    Refused when there is no room for it, Refused when the streams are another installation's.
    """
    await gateway.installation.check()
    async with gateway.admission.reserve():
        deadline = asyncio.get_running_loop().time() + TIMEOUT_SECONDS
        # Nobody else knows its id. So where a repeat finds a message of this job, an earlier try was stored and the
        # job has gone on since: NATS was away when it should have answered.
        with contextlib.suppress(Superseded):
            await gateway.publisher.publish(job, expected=0, deadline=deadline)
        gateway.accepted.add((job,))


async def submit_all(gateway: Gateway, jobs: Sequence[Due]) -> None:
    """All or none of them. Raises as `submit`."""
    await gateway.installation.check()
    async with gateway.admission.reserve(len(jobs)):
        await gateway.publisher.publish_new(jobs, asyncio.get_running_loop().time() + TIMEOUT_SECONDS)
        gateway.accepted.add(jobs)
