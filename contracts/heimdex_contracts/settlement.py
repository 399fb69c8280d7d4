"""How one delivery of a job to a stage ends: an outcome in, one settlement out. Pure; the worker carries it out."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finished:
    """The stage's function returned."""


@dataclass(frozen=True, slots=True)
class Errored:
    """The stage's function raised, or ran past its time-out.

    permanent: no retry can help. vanished: the process that ran it, apart from the worker, ended without a word.
    """

    error: str
    permanent: bool = False
    vanished: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """Every attempt that the policy allows was delivered, and none of them gave a sign of life."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The worker was told to stop before the stage was done."""


@dataclass(frozen=True, slots=True)
class Overtaken:
    """The job has gone on without this delivery: another worker finished it, or a caller canceled it."""


Outcome = Finished | Errored | Lost | Interrupted | Overtaken


@dataclass(frozen=True, slots=True)
class Advance:
    """Publish the successor (next stage, or completed), then acknowledge."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Publish the failed attempt, then nak with this delay in seconds."""

    error: str
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Publish failed, then acknowledge."""

    error: str


@dataclass(frozen=True, slots=True)
class HandBack:
    """Publish the same work anew without counting this attempt, then acknowledge."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Acknowledge, publish nothing."""


Settlement = Advance | Retry | GiveUp | HandBack | Drop


def max_attempts(backoff_seconds: tuple[float, ...]) -> int:
    """How often a stage is tried at most: the first time and once a retry."""
    return 1 + len(backoff_seconds)


def settle(outcome: Outcome, stage: str, attempt: int, backoff_seconds: tuple[float, ...]) -> Settlement:
    """Decide. `attempt` is 1-based; `backoff_seconds` has one pause a retry."""
    match outcome:
        case Finished():
            return Advance()
        case Interrupted():
            return HandBack()
        case Overtaken():
            return Drop()
        case Lost():
            allowed = max_attempts(backoff_seconds)
            times = "once" if allowed == 1 else f"{allowed} times"
            return GiveUp(f"The stage {stage} failed: worker lost (tried {times}, no worker reported an end).")
        case Errored(error=error, permanent=permanent):
            if permanent:
                return GiveUp(f"The stage {stage} failed for good on attempt {attempt}: {error}")
            if attempt < max_attempts(backoff_seconds):
                return Retry(error, backoff_seconds[attempt - 1])
            return GiveUp(f"The stage {stage} failed on attempt {attempt} of {max_attempts(backoff_seconds)}: {error}")
