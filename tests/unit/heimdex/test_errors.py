"""The errors with which a stage decides what happens to its job."""

import pickle
from decimal import Decimal
from typing import Any

import pytest

from heimdex import RetryAfter
from heimdex_contracts.pipelines import MAX_SECONDS


@pytest.mark.parametrize("seconds", [0, 0.5, 30, Decimal("1.5"), MAX_SECONDS])
def test_retry_after_takes_a_delay_that_nats_can_keep(seconds: Any) -> None:
    error = RetryAfter(seconds)
    assert (error.seconds, type(error.seconds)) == (float(seconds), float)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), MAX_SECONDS + 1, 10**400])
def test_retry_after_refuses_other_delays_where_it_is_raised(seconds: Any) -> None:
    with pytest.raises(ValueError, match="0 to 31536000 seconds"):
        RetryAfter(seconds)


@pytest.mark.parametrize("seconds", [None, "5", b"5", [5], True])
def test_retry_after_refuses_what_is_not_a_number(seconds: Any) -> None:
    with pytest.raises(TypeError, match="takes a number of seconds"):
        RetryAfter(seconds)


def test_retry_after_can_come_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(RetryAfter(5, "the model is busy")))
    assert (error.seconds, str(error)) == (5, "the model is busy")
