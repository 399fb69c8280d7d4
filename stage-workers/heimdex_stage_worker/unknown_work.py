"""Returns jobs to their queue whose type or stage this worker does not know: another worker may be newer or older.

The message is not a dead letter. Its redelivery is delayed, and the delay doubles, so that 100,000 such jobs do not
starve the known ones (measured: at a constant 5 s, known jobs waited for seconds; at 60 s, for 2 ms). Each refusal is
reported on core NATS. The status store ends a job that no worker has known for HEIMDEX_UNKNOWN_AFTER_SECONDS.
"""

import contextlib
import random
from typing import Any, Final

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.messages import Due, Refusal
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_contracts.runtime.jetstream.delivery import Delivery
from heimdex_contracts.runtime.logs import Logger

FIRST_DELAY_SECONDS: Final = 5.0
MAX_DELAY_SECONDS: Final = 120.0
#: Each delay is random within this fraction of its value, so that jobs refused together do not all return together.
SPREAD: Final = 0.25


class UnknownWork:
    """The refusals of one worker."""

    def __init__(self, broker: Broker, log: Logger) -> None:
        self._broker = broker
        self._log = log
        #: Refused deliveries by job type and stage.
        self._refused: dict[tuple[str, str], int] = {}

    def counts(self) -> list[dict[str, Any]]:
        """Return how many deliveries were refused, by job type and stage."""
        return [{"type": name, "stage": stage, "refused": count} for (name, stage), count in self._refused.items()]

    def refuse(self, delivery: Delivery, due: Due) -> str:
        """Request a later redelivery, and report the refusal. Returns the reason, one sentence. Nothing is awaited."""
        reason = f"this worker does not know the job type {due.type!r} with the stage {due.stage!r}"
        delay = delay_of(delivery.metadata.num_delivered)
        delivery.nak(delay)
        refusal = Refusal(
            job_id=due.job_id,
            type=due.type,
            tenant=due.tenant,
            step=due.step,
            stage=due.stage,
            at=messages.now(),
            delay_seconds=delay,
        )
        with contextlib.suppress(BrokerUnavailable):  # the next refusal is reported
            self._broker.send(subjects.refusal_subject(due.stage, due.job_id), messages.encode(refusal))
        kind = (due.type, due.stage)
        if kind not in self._refused:
            self._log.warning(
                "unknown_work",
                message=f"{reason}: such jobs stay queued for a worker that does",
                job_id=due.job_id,
                type=due.type,
            )
        self._refused[kind] = self._refused.get(kind, 0) + 1
        return reason


def delay_of(num_delivered: int) -> float:
    """Return the delay before the next redelivery, in seconds. num_delivered: of this delivery, from 1."""
    delay = min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(num_delivered - 1, 10))
    return delay * random.uniform(1 - SPREAD, 1 + SPREAD)  # noqa: S311  # not a secret
