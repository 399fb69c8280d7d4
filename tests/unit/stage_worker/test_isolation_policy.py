"""Which attempts run in a process of their own."""

from datetime import UTC, datetime

import pytest

from heimdex_contracts.messages import Progress
from heimdex_stage_worker.execution.isolation_policy import is_suspect

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def tick(attempt: int, *, ended: bool = False) -> Progress:
    """What an attempt told last: before it vanished, or after its error."""
    return Progress(
        job_id="some-id",
        type="made_up",
        tenant="default",
        step=1,
        run=1,
        stage="painting",
        attempt=attempt,
        progress=10,
        at=NOON,
        created_at=NOON,
        started_at=NOON,
        ended=ended,
    )


@pytest.mark.parametrize(("allowed", "apart"), [(1, []), (2, [2]), (3, [3]), (4, [3, 4]), (6, [3, 4, 5, 6])])
def test_a_vanishing_job_runs_apart_from_its_third_attempt_or_in_its_last_of_two(
    allowed: int, apart: list[int]
) -> None:
    tries = range(1, allowed + 1)
    assert [
        attempt for attempt in tries if is_suspect(tick(attempt - 1) if attempt > 1 else None, attempt, allowed)
    ] == apart


def test_nobody_is_suspected_whose_last_attempt_ended_in_an_error_or_is_not_known() -> None:
    assert is_suspect(tick(2), 3, 4)
    assert not is_suspect(tick(2, ended=True), 3, 4)
    assert not is_suspect(tick(1), 3, 4)
    assert not is_suspect(None, 3, 4)
