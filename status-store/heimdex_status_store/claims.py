"""Removes the claims of jobs that ended while they waited for their next attempt."""

import contextlib

from heimdex_contracts import subjects
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.runtime.jetstream.connection import Broker, JetStreamError


async def remove_claim(broker: Broker, job_id: str) -> None:
    """Remove the claim of a job that was canceled or failed between two attempts: no worker receives it any more.

    If that is not possible now, the stream removes the claim when it reaches its maximum age.
    """
    subject = subjects.checkpoint_subject("*", job_id)
    with contextlib.suppress(BrokerUnavailable, JetStreamError):
        stored = await broker.last_message(subjects.CHECKPOINTS, subject)
        if stored is not None:
            await broker.delete_of(subjects.CHECKPOINTS, stored.subject, stored.sequence)
