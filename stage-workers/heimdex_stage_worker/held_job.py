"""One job at this worker, from the arrival of its delivery to its settling."""

import time

from heimdex_contracts import messages
from heimdex_contracts.messages import Due
from heimdex_contracts.pipelines import Pipeline
from heimdex_contracts.runtime.jetstream.delivery import Delivery
from heimdex_stage_worker.execution.attempt import Attempt
from heimdex_stage_worker.execution.subprocess_attempt import IsolatedAttempt
from heimdex_stage_worker.progress import Reporter
from heimdex_stage_worker.transitions import Ended


class HeldJob:
    """A delivery, the hand-over that it carries, and the attempt that it is."""

    def __init__(self, delivery: Delivery, due: Due, pipeline: Pipeline) -> None:
        self.delivery = delivery
        self.due = due
        self.pipeline = pipeline
        self.sequence = delivery.metadata.sequence
        #: The progress that callers may have seen already.
        self.told = due.progress
        self.redelivered = delivery.metadata.num_delivered > 1
        #: What a schedule made: the server publishes it whatever has become of the job since.
        self.fired = due.not_before is not None and due.reason in {"submitted", "restored"}
        #: 1-based; counts those before a hand-back too.
        self.attempt = due.attempts + delivery.metadata.num_delivered
        self.started_at = max(messages.now(), due.at)
        self.began = time.monotonic()
        self.running: Attempt | IsolatedAttempt | None = None
        self.reporter: Reporter | None = None

    def ended(self) -> Ended:
        """What the message that follows says of this delivery."""
        percent = self.reporter.percent() if self.reporter else self.told
        ran = self.reporter is not None
        return Ended(self.attempt, self.sequence, self.delivery.reply, self.started_at, self.began, percent, ran)
