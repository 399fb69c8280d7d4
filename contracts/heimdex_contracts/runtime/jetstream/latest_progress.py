"""Reads the newest progress tick of a hand-over from HEIMDEX_PROGRESS.

The stream is in memory and keeps a tick for minutes: the absence of a tick does not prove that no attempt has begun.
"""

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import UnusableMessage
from heimdex_contracts.messages import Due, Progress
from heimdex_contracts.runtime.jetstream.connection import Broker


async def latest_progress(broker: Broker, due: Due, timeout: float = 2.0) -> Progress | None:
    """Return the newest progress tick of this hand-over; None if there is none, or if the newest one is unusable.

    timeout: seconds. A tick of another hand-over of the same job to the same stage does not count. Raises
    BrokerUnavailable or JetStreamError.
    """
    last = await broker.last_message(subjects.PROGRESS, subjects.progress_subject(due.stage, due.job_id), timeout)
    if last is None:
        return None
    try:
        tick = messages.decode_progress(last.subject, last.data)
    except UnusableMessage:
        return None
    return tick if tick.step == due.step else None
