"""An attempt in a process of its own, against such processes."""

import asyncio

import pytest

from heimdex_contracts.delivery import Errored, Outcome
from heimdex_stage_worker.context import StageContext
from heimdex_stage_worker.isolation import IsolatedAttempt
from tests.harness.pipelines import isolatable
from tests.harness.services import ROOT


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def isolated(function: str, told: str, timeout: float | None = None) -> IsolatedAttempt:
    """told: what the function is to do, in the place of a job's type."""
    ctx = StageContext(
        job_id="some-id", job_type=told, stage="painting", attempt=3, expected_seconds=1, mock_time_scale=0
    )
    return IsolatedAttempt(f"{isolatable.__name__}:{function}", ctx, timeout, asyncio.Semaphore(1))


async def ended(attempt: IsolatedAttempt) -> Outcome:
    return await asyncio.wait_for(attempt.run(), 40)


@pytest.mark.parametrize("function", ["raise_blocking", "raise_async"])
@pytest.mark.parametrize("name", isolatable.ODD)
async def test_no_exception_of_a_stage_hangs_its_process_or_lets_it_vanish(function: str, name: str) -> None:
    outcome = await ended(isolated(function, name))
    assert isinstance(outcome, Errored), f"instead: {outcome!r}"
    assert not outcome.vanished
    assert not outcome.permanent
    assert ("cancelled itself" if name == "CancelledError" else name) in outcome.error
