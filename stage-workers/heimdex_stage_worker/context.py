"""The argument of a stage's function: the job's data, a method to report progress, and the interruption flag."""

from collections.abc import Awaitable, Callable
from typing import Any

from heimdex_contracts.errors import HeimdexError


class PermanentError(HeimdexError):
    """A stage raises this error when no retry can help: the job fails at once with this text."""


class StageInterrupted(BaseException):
    """`report` raises this when the attempt is over: the job was canceled, timed out or must be handed back.

    It is a BaseException, so that a stage's own `except Exception` does not catch it.
    """


class StageContext:
    """One attempt at one stage of one job. Safe to use from the thread of a blocking stage."""

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
    ) -> None:
        self.job_id = job_id
        self.job_type = job_type
        self.stage = stage
        #: The number of this attempt, from 1.
        self.attempt = attempt
        #: The expected duration that the pipeline declares, in seconds.
        self.expected_seconds = expected_seconds
        #: A factor for the durations of the mock stages; real stages ignore it.
        self.mock_time_scale = mock_time_scale
        self.fail_at_stage = fail_at_stage
        self.fraction = 0.0
        self.reported = False
        self._interrupted = False

    def report(self, fraction: float) -> None:
        """Report the fraction of this stage that is done, 0 to 1. A call is cheap, so a stage may report often.

        Raises StageInterrupted when the attempt is over; the stage must not catch it.
        """
        if self._interrupted:
            raise StageInterrupted(f"the attempt {self.attempt} of {self.stage} is over")
        self.reported = True
        self.fraction = min(1.0, max(self.fraction, fraction))

    @property
    def interrupted(self) -> bool:
        """Whether the attempt is over. A blocking stage that does not call `report` may check this."""
        return self._interrupted

    def interrupt(self) -> None:
        """Mark the attempt as over, so that the next `report` raises. Only the worker calls this."""
        self._interrupted = True


StageFunction = Callable[[StageContext], Awaitable[Any] | Any]
