"""Every way in which a delivery can end."""

import pytest
from msgspec import Raw

from heimdex_contracts.settlement import (
    Advance,
    Drop,
    Errored,
    Finished,
    GiveUp,
    HandBack,
    Interrupted,
    Lost,
    Retry,
    Superseded,
    max_attempts,
    settle,
)

BACKOFF = (1.0, 2.0, 4.0)


def test_settle_advances_when_the_stage_finished() -> None:
    assert settle(Finished(), "analyzing", 1, BACKOFF) == Advance()


def test_settle_hands_back_when_interrupted_whatever_the_attempt() -> None:
    assert settle(Interrupted(), "analyzing", 4, BACKOFF) == HandBack()


def test_settle_drops_a_superseded_delivery() -> None:
    assert settle(Superseded(), "analyzing", 2, BACKOFF) == Drop()


@pytest.mark.parametrize(("attempt", "pause"), [(1, 1.0), (2, 2.0), (3, 4.0)])
def test_settle_retries_with_this_attempts_delay_while_the_policy_has_one(attempt: int, pause: float) -> None:
    assert settle(Errored("oh"), "analyzing", attempt, BACKOFF) == Retry("oh", pause)


@pytest.mark.parametrize("attempt", [4, 5])
def test_settle_gives_up_naming_stage_and_cause_when_the_retries_are_used_up(attempt: int) -> None:
    outcome = settle(Errored("no space"), "analyzing", attempt, BACKOFF)
    assert isinstance(outcome, GiveUp)
    assert "analyzing" in outcome.error
    assert "no space" in outcome.error


def test_settle_gives_up_at_once_when_the_error_is_permanent() -> None:
    outcome = settle(Errored("bad file", permanent=True), "analyzing", 1, BACKOFF)
    assert isinstance(outcome, GiveUp)
    assert "analyzing" in outcome.error
    assert "bad file" in outcome.error


def test_settle_gives_up_on_the_first_error_when_the_policy_has_no_retries() -> None:
    assert isinstance(settle(Errored("oh"), "analyzing", 1, ()), GiveUp)


@pytest.mark.parametrize("backoff", [(), BACKOFF])
def test_settle_fails_with_worker_lost_and_the_stage_when_no_attempt_reported(backoff: tuple[float, ...]) -> None:
    outcome = settle(Lost(), "analyzing", 5, backoff)
    assert isinstance(outcome, GiveUp)
    assert "worker lost" in outcome.error
    assert "analyzing" in outcome.error


def test_max_attempts_counts_the_first_one_too() -> None:
    assert (max_attempts(()), max_attempts(BACKOFF)) == (1, 4)


def test_a_requested_delay_replaces_that_of_the_policy_and_allows_no_further_attempt() -> None:
    asked = Errored("busy", retry_after_seconds=30.0)
    assert settle(asked, "analyzing", 1, BACKOFF) == Retry("busy", 30.0)
    assert settle(Errored("busy", retry_after_seconds=0.0), "analyzing", 2, BACKOFF) == Retry("busy", 0.0)
    assert settle(asked, "analyzing", 4, BACKOFF) == GiveUp("The stage analyzing failed on attempt 4 of 4: busy")
    permanent = Errored("no", permanent=True, retry_after_seconds=30.0)
    assert settle(permanent, "analyzing", 1, BACKOFF) == GiveUp(
        "The stage analyzing failed permanently on attempt 1: no"
    )


def test_settle_advances_with_the_output() -> None:
    output = Raw(b"[1]")
    assert settle(Finished(output), "analyzing", 1, BACKOFF) == Advance(output)
