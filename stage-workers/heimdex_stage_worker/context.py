"""What a stage's function is given: the job, a way to tell its progress, and word of being interrupted."""

from collections.abc import Awaitable, Callable
from typing import Any

from heimdex_contracts.errors import HeimdexError


class PermanentError(HeimdexError):
    """Raise it from a stage when no retry can help: the job fails at once with this text."""


class StageInterrupted(BaseException):
    """Raised by `report` in a blocking stage whose job was canceled, timed out or must be handed back.

    No Exception, so that a stage's own `except Exception` does not swallow it.
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
        #: 1 for the first try.
        self.attempt = attempt
        #: As the pipeline declares it.
        self.expected_seconds = expected_seconds
        #: Multiplies the pretended durations of the mock stages; real stages ignore it.
        self.mock_time_scale = mock_time_scale
        self.fail_at_stage = fail_at_stage
        self.fraction = 0.0
        self.reported = False
        self._interrupted = False

    def report(self, fraction: float) -> None:
        """Tell how much of this stage is done, 0 to 1; cheap, call it as often as you like.

        Raises StageInterrupted when the attempt is over: let it pass.
        """
        if self._interrupted:
            raise StageInterrupted(f"the attempt {self.attempt} of {self.stage} is over")
        self.reported = True
        self.fraction = min(1.0, max(self.fraction, fraction))

    @property
    def interrupted(self) -> bool:
        """Whether the attempt is over; a blocking stage that does not report may ask here."""
        return self._interrupted

    def interrupt(self) -> None:
        """Called by the worker: the next `report` raises."""
        self._interrupted = True


StageFunction = Callable[[StageContext], Awaitable[Any] | Any]
