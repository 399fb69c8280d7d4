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
from heimdex_contracts.pipelines import Pipelines
from heimdex_contracts.runtime.jetstream.publisher import Publisher
from heimdex_gateway.installation import InstallationCheck
from heimdex_gateway.jobs.admission import Admission
from heimdex_gateway.jobs.recently_accepted import RecentlyAccepted

#: Of the 5 s that an answer may take at most.
TIMEOUT_SECONDS: Final = 4.0


class JobRequest(msgspec.Struct, frozen=True):
    """What a caller asks for; each field is one of Due. not_before: None for now; callback_url: not looked up yet."""

    type: str
    fail_at_stage: str | None
    not_before: datetime | None
    callback_url: str | None = None


class Submit:
    """The use case, for one job and for a batch."""

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
        """The first message of the tenant's job, with an id of its own: a UUID of version 7, ordered by time."""
        at = messages.now()
        return Due(
            **msgspec.structs.asdict(request),
            job_id=str(uuid_utils.uuid7()),
            tenant=tenant,
            step=0,
            created_at=at,
            at=at,
            stage=self._pipelines.by_type[request.type].first_stage,
            reason="submitted",
            trace=tracing.start(traceparent),
        )

    async def check_streams(self) -> None:
        """Raises Refused when the streams are another installation's."""
        await self._installation.check()

    async def submit(self, jobs: Sequence[Due]) -> None:
        """Publish these jobs to their first stages, or for later: all or none of them.

        Raises BrokerUnavailable when NATS did not store them in time (whether it did later is then not known),
        QueueFull or Refused when there is no room for them, Refused when the streams are another installation's.
        """
        await self.check_streams()
        async with self._admission.reserve(len(jobs)):
            deadline = asyncio.get_running_loop().time() + TIMEOUT_SECONDS
            if len(jobs) > 1:
                await self._publisher.publish_new(jobs, deadline)
            else:
                # Nobody else knows its id. So where a repeat finds a message of this job, an earlier publish was stored
                # and the job has gone on since: NATS was down when it should have answered.
                with contextlib.suppress(Superseded):
                    await self._publisher.publish(jobs[0], expected=0, deadline=deadline)
            self._accepted.add(jobs)
