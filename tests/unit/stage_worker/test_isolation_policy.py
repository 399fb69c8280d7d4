"""Which attempts run in a process of their own."""

import pytest

from heimdex_stage_worker.execution.isolation_policy import is_suspect


@pytest.mark.parametrize(("allowed", "isolated"), [(1, []), (2, [2]), (3, [3]), (4, [3, 4]), (6, [3, 4, 5, 6])])
def test_a_job_that_loses_its_workers_is_isolated_from_its_third_attempt_or_in_its_last_of_two(
    allowed: int, isolated: list[int]
) -> None:
    attempts = range(1, allowed + 1)
    assert [attempt for attempt in attempts if is_suspect(attempt > 1, attempt, allowed)] == isolated


def test_a_job_whose_last_attempt_reported_its_error_is_not_suspected() -> None:
    assert not any(is_suspect(False, attempt, 4) for attempt in range(1, 5))
