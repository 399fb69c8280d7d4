"""What the worker knows of one attempt. Authors of stages see it through the context only."""

import msgspec

from heimdex_contracts.messages import NOTHING, StageRun


class AttemptState:
    """What the worker knows of one attempt: its job, the progress that the stage reported, whether it is over.

    The worker reads this and never the `Context`, which is in the hands of other people's code.
    """

    def __init__(
        self,
        *,
        job_id: str,
        job_type: str,
        stage: str,
        attempt: int,
        expected_seconds: float,
        mock_time_scale: float,
        fail_at_stage: str | None = None,
        params: msgspec.Raw = NOTHING,
        finished: tuple[StageRun, ...] = (),
    ) -> None:
        self.job_id = job_id
        self.job_type = job_type
        self.stage = stage
        self.attempt = attempt
        self.expected_seconds = expected_seconds
        self.mock_time_scale = mock_time_scale
        self.fail_at_stage = fail_at_stage
        #: The job's params and the stages before this one with their outputs, as in the job's messages.
        self.params = params
        self.finished = finished
        self.reported = False
        self.interrupted = False
        self._fraction = 0.0

    @property
    def fraction(self) -> float:
        """The fraction of the stage that is done: a number from 0 to 1, whatever a stage did to this object."""
        fraction = self._fraction
        return fraction if type(fraction) is float and 0.0 <= fraction <= 1.0 else 0.0

    def report(self, fraction: float) -> None:
        """Record the fraction of the stage that is done; it never decreases. fraction: a finite number."""
        self.reported = True
        self._fraction = min(1.0, max(self.fraction, fraction))

    def interrupt(self) -> None:
        """Mark the attempt as over, so that the next report of the stage raises."""
        self.interrupted = True
