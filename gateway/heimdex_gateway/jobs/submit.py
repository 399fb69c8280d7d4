"""Accepts jobs with one publish, or with one atomic batch. A job is accepted only after JetStream has stored it."""

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
from heimdex_contracts.pipelines import Pipelines
from heimdex_contracts.runtime.jetstream.publisher import Publisher
from heimdex_gateway.installation import InstallationCheck
from heimdex_gateway.jobs.admission import Admission
from heimdex_gateway.jobs.recently_accepted import RecentlyAccepted

#: The time limit of a publish; a response may take 5 s at most.
TIMEOUT_SECONDS: Final = 4.0


class JobRequest(msgspec.Struct, frozen=True):
    """A job as requested; each field is a field of Due. not_before: None for now; callback_url: not resolved yet.

    params: validated, and encoded again with their defaults; NOTHING for a job type without params.

    No field has a default, so that the type checker finds where a new one is not passed on.
    """

    type: str
    fail_at_stage: str | None
    not_before: datetime | None
    callback_url: str | None
    params: msgspec.Raw


class Submit:
    """The use case that submits one job or a batch."""

    def __init__(
        self,
        publisher: Publisher,
        pipelines: Pipelines,
        admission: Admission,
        accepted: RecentlyAccepted,
        installation: InstallationCheck,
    ) -> None:
        self._publisher = publisher
        self._pipelines = pipelines
        self._admission = admission
        self._accepted = accepted
        self._installation = installation

    def new_job(self, tenant: str, request: JobRequest, traceparent: str | None) -> Due:
        """Build the first message of a new job of this tenant. Its id is a UUID of version 7, ordered by time."""
        at = messages.now()
        pipeline = self._pipelines.by_type[request.type]
        return Due(
            **msgspec.structs.asdict(request),
            job_id=str(uuid_utils.uuid7()),
            tenant=tenant,
            step=0,
            created_at=at,
            at=at,
            stage=pipeline.first_stage,
            reason="submitted",
            trace=tracing.start(traceparent),
            route=pipeline.stage_names,
        )

    async def check_streams(self) -> None:
        """Raises Refused if the streams belong to another installation."""
        await self._installation.check()

    async def submit(self, jobs: Sequence[Due]) -> None:
        """Publish all of these jobs, or none: each is due at its first stage at once, or scheduled for later.

        Raises BrokerUnavailable if NATS did not confirm in time (it is then unknown whether it stores them later),
        QueueFull if the queue is full, and Refused if JetStream does not accept the jobs or if the streams belong to
        another installation.
        """
        await self.check_streams()
        async with self._admission.reserve(len(jobs)):
            deadline = asyncio.get_running_loop().time() + TIMEOUT_SECONDS
            if len(jobs) > 1:
                await self._publisher.publish_new(jobs, deadline)
            else:
                # No other process knows the id of this job. So if the job already has a message, that is one of ours:
                # an earlier publish was stored, but NATS went down before it confirmed.
                with contextlib.suppress(Superseded):
                    await self._publisher.publish(jobs[0], expected=0, deadline=deadline)
            self._accepted.add(jobs)
