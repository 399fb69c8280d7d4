"""Decides how one delivery of a job to a stage is settled. Pure: it maps an outcome to a settlement.

The worker produces the outcome and carries out the settlement.
"""

from dataclasses import dataclass, field

import msgspec

from heimdex_contracts.messages import NOTHING


@dataclass(frozen=True, slots=True)
class Finished:
    """The stage's function returned, so the stage succeeded. output: what it returned, as in StageRun."""

    output: msgspec.Raw = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True)
class Errored:
    """The stage's function raised an error or exceeded its time-out.

    permanent: no retry can help. vanished: the function ran in a process of its own, which ended without a result.
    traceback: the end of the error's traceback; None where there is none. retry_after_seconds: the delay for which the
    function asked, instead of that of the retry policy; None: it did not ask.
    """

    error: str
    permanent: bool = False
    vanished: bool = False
    traceback: str | None = None
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """No attempt is left. reported: the last one reported its error, under a retry policy that allowed more attempts.

    Otherwise the last attempt reported no result.
    """

    reported: bool = False


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The worker received its stop signal before the stage finished."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """The delivery is superseded: another worker finished the stage, or a caller canceled the job."""


Outcome = Finished | Errored | Lost | Interrupted | Superseded


@dataclass(frozen=True, slots=True)
class Advance:
    """Publish the successor (the hand-over to the next stage, or completed) with this output, then acknowledge."""

    output: msgspec.Raw = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True)
class Retry:
    """Publish the failed attempt, then nak with this delay in seconds."""

    error: str
    delay_seconds: float
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Publish the job's failure, a terminal event, then acknowledge."""

    error: str
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class HandBack:
    """Publish the same work item again without counting this attempt, then acknowledge."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Acknowledge without publishing anything."""


Settlement = Advance | Retry | GiveUp | HandBack | Drop


def max_attempts(backoff_seconds: tuple[float, ...]) -> int:
    """Return how many attempts a stage has at most: the first one and one per retry."""
    return 1 + len(backoff_seconds)


def settle(outcome: Outcome, stage: str, attempt: int, backoff_seconds: tuple[float, ...]) -> Settlement:
    """Return the settlement of a delivery. `attempt` starts at 1; `backoff_seconds` has one delay per retry."""
    match outcome:
        case Finished(output=output):
            return Advance(output)
        case Interrupted():
            return HandBack()
        case Superseded():
            return Drop()
        case Lost(reported=reported):
            allowed = max_attempts(backoff_seconds)
            attempts = "1 attempt" if allowed == 1 else f"{allowed} attempts"
            if reported:
                return GiveUp(f"The stage {stage} failed on attempt {attempt}; its retry policy now allows {attempts}.")
            return GiveUp(f"The stage {stage} failed: worker lost ({attempts}, the last one reported no result).")
        case Errored(error=error, permanent=permanent, traceback=traceback, retry_after_seconds=asked):
            allowed = max_attempts(backoff_seconds)
            if permanent:
                return GiveUp(f"The stage {stage} failed permanently on attempt {attempt}: {error}", traceback)
            if attempt < allowed:
                return Retry(error, backoff_seconds[attempt - 1] if asked is None else asked, traceback)
            return GiveUp(f"The stage {stage} failed on attempt {attempt} of {allowed}: {error}", traceback)
