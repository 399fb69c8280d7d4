"""The delays with which a worker returns jobs that it does not know."""

import pytest

from heimdex_stage_worker.unknown_work import delay_of


@pytest.mark.parametrize(("num_delivered", "seconds"), [(1, 5), (2, 10), (3, 20), (5, 80), (6, 120), (1_000_000, 120)])
def test_the_delay_doubles_from_5_to_120_seconds_and_is_spread(num_delivered: int, seconds: float) -> None:
    delays = [delay_of(num_delivered) for _ in range(200)]
    assert all(0.75 * seconds <= delay <= 1.25 * seconds for delay in delays)
    assert len(set(delays)) > 100
