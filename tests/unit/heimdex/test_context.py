"""What a stage tells of its progress."""

import asyncio
import math
import pickle
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from heimdex import Context, StageInterrupted
from heimdex.attempt_state import AttemptState
from heimdex_stage_worker.stages import analyzing, extracting, indexing


def attempt_state(**fields: float) -> AttemptState:
    common = {"expected_seconds": 3.0, "mock_time_scale": 0.0, **fields}
    return AttemptState(job_id="some-id", job_type="mock_process", stage="analyzing", attempt=1, **common)


def context(**fields: float) -> Context:
    return Context(attempt_state(**fields))


class Half:
    def __float__(self) -> float:
        return 0.5


class HalfIndex(float):
    """A float with methods of its own, as the scalars of numpy are."""

    def __lt__(self, other: object) -> bool:
        raise RuntimeError("compared")

    __gt__ = __lt__


@pytest.mark.parametrize(
    ("reports", "fraction"),
    [([0.2, 0.5], 0.5), ([0.5, 0.2], 0.5), ([7], 1.0), ([-1], 0.0), ([True], 1.0)],
)
def test_report_keeps_the_furthest_fraction_between_0_and_1(reports: list[float], fraction: float) -> None:
    ctx = context()
    for each in reports:
        ctx.report(each)
    assert ctx.fraction == fraction


def test_report_raises_once_the_attempt_is_over_and_except_exception_does_not_catch_it() -> None:
    state = attempt_state()
    ctx = Context(state)
    state.interrupt()
    assert ctx.interrupted
    with pytest.raises(StageInterrupted):
        ctx.report(0.5)
    assert not issubclass(StageInterrupted, Exception)


@pytest.mark.parametrize(
    "half", [Decimal("0.5"), Fraction(1, 2), Half(), HalfIndex(0.5)], ids=lambda value: type(value).__name__
)
def test_report_takes_every_kind_of_number_and_keeps_a_float(half: Any) -> None:
    state = attempt_state()
    Context(state).report(half)
    assert type(state.fraction) is float
    assert state.fraction == 0.5


@pytest.mark.parametrize(
    ("garbage", "error"),
    [
        *((value, ValueError) for value in (math.nan, math.inf, -math.inf, Decimal("nan"), 10**400)),
        *((value, TypeError) for value in (None, "0.5", b"0.5", memoryview(b"0.5"), [0.5], 1j, object())),
    ],
    ids=lambda value: type(value).__name__,
)
def test_report_refuses_what_is_not_a_finite_number_in_plain_words(garbage: Any, error: type[Exception]) -> None:
    ctx = context()
    ctx.report(0.3)
    with pytest.raises(error, match=r"^ctx\.report takes a number from 0 to 1, not "):
        ctx.report(garbage)
    assert ctx.fraction == 0.3


@pytest.mark.parametrize("name", ["job_id", "attempt", "fraction", "report", "interrupted", "my_own", "_state"])
def test_a_stage_cannot_change_its_context(name: str) -> None:
    ctx = context()
    with pytest.raises(AttributeError, match=rf"^ctx\.{name} cannot be set: the context is read-only"):
        setattr(ctx, name, "changed")
    with pytest.raises(AttributeError, match=rf"^ctx\.{name} cannot be deleted"):
        delattr(ctx, name)
    assert (ctx.job_id, ctx.attempt) == ("some-id", 1)


@pytest.mark.parametrize("garbage", [math.nan, "0.5", None, 7.0, -1.0])
def test_a_stage_that_forces_a_fraction_into_the_state_leaves_a_number(garbage: Any) -> None:
    state = attempt_state()
    ctx = Context(state)
    object.__setattr__(ctx._state, "_fraction", garbage)
    assert state.fraction == 0.0
    ctx.report(0.25)
    assert state.fraction == 0.25
    object.__setattr__(ctx, "_state", None)
    assert (state.job_id, state.fraction) == ("some-id", 0.25)


def test_a_copy_of_the_context_in_another_process_reports_nothing() -> None:
    state = attempt_state()
    copied = pickle.loads(pickle.dumps(Context(state)))
    copied.report(0.5)
    assert (copied.job_id, state.fraction) == ("some-id", 0.0)


@pytest.mark.parametrize("stage", [extracting, analyzing, indexing])
async def test_a_mock_stage_ends_at_once_when_time_is_scaled_to_0(stage: object) -> None:
    await asyncio.wait_for(stage.run(context()), 20)  # type: ignore[attr-defined]


async def test_a_mock_stage_takes_its_scaled_time_and_reports_progress() -> None:
    ctx = context(mock_time_scale=0.05)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await analyzing.run(ctx)
    assert loop.time() - began >= 0.1  # of 0.15: uvloop rounds each of the many short sleeps to a millisecond
    assert ctx.fraction == 1
