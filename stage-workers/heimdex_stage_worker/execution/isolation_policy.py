"""Decides whether an attempt runs in a separate process, because the job is suspected of killing its worker.

A job whose last attempt was lost with its worker is redelivered, and so is a job whose last attempt failed with an
error. The newest message on `heimdex.progress.<stage>.<job_id>` distinguishes them: every attempt except the first
publishes one before it starts, and one marked `ended` after an error. Without such a message (its stream is in memory
and keeps it for minutes), the job is not suspected. At worst, that costs an attempt of the jobs beside it, never a job.
"""

from typing import Final

from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.messages import Due, Progress
from heimdex_contracts.runtime.jetstream.connection import Broker, JetStreamError
from heimdex_contracts.runtime.jetstream.latest_progress import latest_progress

#: One lost worker may be an accident; after two in a row, the job is suspected.
ISOLATED_FROM_ATTEMPT: Final = 3


async def last_tick(broker: Broker, due: Due) -> Progress | None:
    """Return the newest progress message of this hand-over; None if there is none, or if NATS does not answer."""
    try:
        return await latest_progress(broker, due)
    except (BrokerUnavailable, JetStreamError):
        return None


def is_suspect(tick: Progress | None, attempt: int, allowed: int) -> bool:
    """Return whether this attempt must run in a process of its own.

    That is the case if the previous attempt was lost, and this one is the third or the last one, whichever comes first.
    It is never the case for a stage with one attempt. allowed: the maximum number of attempts of the stage.

    | allowed attempts | isolated, if the previous attempt was lost |
    | --- | --- |
    | 1 | never |
    | 2 | the second |
    | 3 or more | from the third on |
    """
    if attempt < min(ISOLATED_FROM_ATTEMPT, allowed):
        return False
    return tick is not None and tick.attempt == attempt - 1 and not tick.ended
