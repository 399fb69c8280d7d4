"""Tells a job whose last attempt vanished without a word from one whose last attempt ended in an error.

Both come back as a redelivery. The newest tick on `heimdex.progress.<stage>.<job_id>` knows: every attempt but the
first leaves one before it starts, and one marked `ended` follows each error. Without one (its stream is in memory and
forgets after minutes) nobody is suspected: that costs a lost neighbour at worst, never a job.
"""

from typing import Final

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, UnusableMessage
from heimdex_contracts.messages import Due, Progress
from heimdex_contracts.runtime.jetstream.connection import Broker, JetStreamError

#: One lost worker is an accident that may happen to any job; two in a row need a closer look.
ISOLATED_FROM_ATTEMPT: Final = 3


async def last_tick(broker: Broker, due: Due) -> Progress | None:
    """What the attempts before told last, of this very hand-over; None where nobody knows any more."""
    try:
        last = await broker.last_message(subjects.PROGRESS, subjects.progress_subject(due.stage, due.job_id))
        tick = None if last is None else messages.decode_progress(last.subject, last.data)
    except (BrokerUnavailable, JetStreamError, UnusableMessage):
        return None
    return tick if tick is not None and tick.step == due.step else None


def is_suspect(tick: Progress | None, attempt: int, allowed: int) -> bool:
    """Whether this attempt should run in a process of its own; `allowed`: how often the stage may be tried.

    It is where the attempt before vanished, and this is the third or the last, whichever is first; an only try never.
    """
    if attempt < min(ISOLATED_FROM_ATTEMPT, allowed):
        return False
    return tick is not None and tick.attempt == attempt - 1 and not tick.ended
