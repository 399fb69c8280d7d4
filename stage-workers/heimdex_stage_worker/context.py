"""The argument of a stage's function: the job's data, a method to report progress, and the interruption flag."""

import math
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, SupportsFloat

from heimdex_contracts.errors import HeimdexError


class PermanentError(HeimdexError):
    """A stage raises this error when no retry can help: the job fails at once with this text."""


class StageInterrupted(BaseException):
    """`report` raises this when the attempt is over: the job was canceled, timed out or must be handed back.

    It is a BaseException, so that a stage's own `except Exception` does not catch it.
    """


class AttemptState:
    """What the worker knows of one attempt: its job, the progress that the stage reported, whether it is over.

    The worker reads this and never the `StageContext`, which is in the hands of other people's code.
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
    ) -> None:
        self.job_id = job_id
        self.job_type = job_type
        self.stage = stage
        self.attempt = attempt
        self.expected_seconds = expected_seconds
        self.mock_time_scale = mock_time_scale
        self.fail_at_stage = fail_at_stage
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


class StageContext:
    """One attempt at one stage of one job, as the stage's function sees it. Safe to use from any thread.

    It is read-only: an assignment raises AttributeError. A copy in another process has the data, and reports nothing.
    """

    __slots__ = ("_state",)
    _state: AttemptState

    def __init__(self, state: AttemptState) -> None:
        object.__setattr__(self, "_state", state)

    @property
    def job_id(self) -> str:
        """The id of the job: a UUID."""
        return self._state.job_id

    @property
    def job_type(self) -> str:
        """The type of the job: the name of its pipeline."""
        return self._state.job_type

    @property
    def stage(self) -> str:
        """The name of the stage."""
        return self._state.stage

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self._state.attempt

    @property
    def expected_seconds(self) -> float:
        """The expected duration that the pipeline declares, in seconds."""
        return self._state.expected_seconds

    @property
    def mock_time_scale(self) -> float:
        """A factor for the durations of the mock stages; real stages ignore it."""
        return self._state.mock_time_scale

    @property
    def fail_at_stage(self) -> str | None:
        """The stage at which the mock pipeline must fail; real stages ignore it."""
        return self._state.fail_at_stage

    @property
    def fraction(self) -> float:
        """The fraction of this stage that was reported as done, 0 to 1."""
        return self._state.fraction

    @property
    def interrupted(self) -> bool:
        """Whether the attempt is over. A blocking stage that does not call `report` may check this."""
        return self._state.interrupted

    def report(self, fraction: SupportsFloat) -> None:
        """Report the fraction of this stage that is done, 0 to 1. A call is cheap, so a stage may report often.

        Less than 0 counts as 0, more than 1 as 1; the fraction never decreases. Raises StageInterrupted when the
        attempt is over; the stage must not catch it. Raises TypeError for what is not a number, ValueError for nan
        and the infinities.
        """
        if self._state.interrupted:
            raise StageInterrupted(f"the attempt {self._state.attempt} of {self._state.stage} is over")
        self._state.report(_finite(fraction))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(
            f"ctx.{name} cannot be set: the context is read-only; keep your own values in variables of your function"
        )

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"ctx.{name} cannot be deleted: the context is read-only")

    def __reduce__(self) -> tuple[Any, ...]:
        return StageContext, (self._state,)


def _finite(fraction: SupportsFloat) -> float:
    if isinstance(fraction, str | bytes | bytearray | memoryview):
        value = None  # float() would parse it
    else:
        try:
            value = float(fraction)
        except OverflowError:
            value = math.inf
        except TypeError:
            value = None
    if value is None:
        raise TypeError(f"ctx.report takes a number from 0 to 1, not a value of the type {type(fraction).__name__}")
    if not math.isfinite(value):
        raise ValueError("ctx.report takes a number from 0 to 1, not nan or an infinity")
    return value


StageFunction = Callable[[StageContext], Awaitable[Any] | Any]
