"""A job that this worker holds, from the arrival of its delivery to its settlement."""

import time

from heimdex_contracts import messages
from heimdex_contracts.messages import Due
from heimdex_contracts.runtime.jetstream.delivery import Delivery
from heimdex_stage_worker.claims import Begun
from heimdex_stage_worker.execution.attempt import Attempt
from heimdex_stage_worker.execution.subprocess_attempt import IsolatedAttempt
from heimdex_stage_worker.progress import Reporter
from heimdex_stage_worker.served_stage import ServedStage
from heimdex_stage_worker.transitions import Ended


class HeldJob:
    """A delivery with its hand-over and the attempt that it starts."""

    def __init__(self, delivery: Delivery, due: Due, served: ServedStage) -> None:
        self.delivery = delivery
        self.due = due
        self.served = served
        self.sequence = delivery.metadata.sequence
        #: The progress of earlier attempts, which callers may already have seen, in percent of the job.
        self.reported_progress = due.progress
        self.redelivered = delivery.redelivered
        #: Whether a schedule published this message. The server publishes it even if the job has been canceled since.
        self.fired = due.not_before is not None and due.reason in {"submitted", "restored"}
        #: The number of this attempt, from 1, including the attempts before a hand-back.
        self.attempt = due.attempts + 1
        #: The sequence of this hand-over's claim; 0: there is none.
        self.claim = 0
        self.started_at = max(messages.now(), due.at)
        self.began = time.monotonic()
        self.running: Attempt | IsolatedAttempt | None = None
        self.reporter: Reporter | None = None

    def count(self, begun: Begun) -> None:
        """Count the attempts that began before this delivery."""
        self.attempt = begun.attempt + 1
        self.claim = begun.sequence
        self.reported_progress = max(self.reported_progress, begun.progress)

    def ended(self) -> Ended:
        """Return the data of this delivery that its successor needs."""
        percent = self.reporter.percent() if self.reporter else self.reported_progress
        ran = self.reporter is not None
        return Ended(self.attempt, self.sequence, self.delivery.reply, self.started_at, self.began, percent, ran)
