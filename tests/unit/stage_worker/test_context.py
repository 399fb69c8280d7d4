"""The progress that a stage reports."""

import asyncio

import pytest

from heimdex_stage_worker.context import StageContext, StageInterrupted
from heimdex_stage_worker.stages import analyzing, extracting, indexing


def context(**fields: float) -> StageContext:
    common = {"expected_seconds": 3.0, "mock_time_scale": 0.0, **fields}
    return StageContext(job_id="some-id", job_type="mock_process", stage="analyzing", attempt=1, **common)


@pytest.mark.parametrize(
    ("reports", "fraction"),
    [([0.2, 0.5], 0.5), ([0.5, 0.2], 0.5), ([7], 1.0), ([-1], 0.0), ([0.3, float("nan")], 0.3)],
)
def test_report_keeps_the_furthest_fraction_between_0_and_1(reports: list[float], fraction: float) -> None:
    ctx = context()
    for each in reports:
        ctx.report(each)
    assert ctx.fraction == fraction


def test_report_raises_once_the_attempt_is_over_and_except_exception_does_not_catch_it() -> None:
    ctx = context()
    ctx.interrupt()
    assert ctx.interrupted
    with pytest.raises(StageInterrupted):
        ctx.report(0.5)
    assert not issubclass(StageInterrupted, Exception)


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
