"""The errors with which a stage decides what happens to its job."""

from typing import Any

from heimdex.numbers import number_of
from heimdex_contracts.errors import HeimdexError
from heimdex_contracts.pipelines import MAX_SECONDS


class PermanentError(HeimdexError):
    """A stage raises this error when no retry can help: the job fails at once with this text."""


class RetryAfter(HeimdexError):
    """A stage raises this error to be retried after this delay instead of the one of its retry policy.

    It is an attempt that failed like any other: after the last one, the job is failed. seconds: a finite number, 0 to
    MAX_SECONDS. reason: why, for the error of the attempt. Raises TypeError for what is not a number, ValueError for
    any other one.
    """

    def __init__(self, seconds: float, reason: str = "") -> None:
        self.seconds = _delay(seconds)
        super().__init__(reason or f"the stage asked to be retried after {self.seconds:g} s")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.seconds, str(self))


def _delay(seconds: Any) -> float:
    try:
        value = None if isinstance(seconds, bool) else number_of(seconds)
    except ValueError:  # of a number's own __float__
        value = None
    if value is None:
        raise TypeError(f"RetryAfter takes a number of seconds, not a value of the type {type(seconds).__name__}")
    if not 0 <= value <= MAX_SECONDS:  # also for nan
        raise ValueError(f"RetryAfter takes 0 to {MAX_SECONDS} seconds, not {value:g}")
    return value
