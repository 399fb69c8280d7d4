"""The progress that a worker publishes of a stage, whatever the stage does to its context."""

import sys
import threading
import uuid
from typing import Any, cast

import pytest

from heimdex import Context
from heimdex.attempt_state import AttemptState
from heimdex_contracts import messages
from heimdex_contracts.messages import Due
from heimdex_contracts.mock_process import PIPELINES
from heimdex_contracts.runtime.jetstream.connection import Broker
from heimdex_stage_worker.progress import Reporter

PIPELINE = PIPELINES[0]
STAGE = "analyzing"


class Sent:
    """In the place of a broker: keeps what was sent."""

    def __init__(self) -> None:
        self.ticks: list[messages.Progress] = []

    def send(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        self.ticks.append(messages.decode_progress(subject, payload))


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def state() -> AttemptState:
    return AttemptState(
        job_id=str(uuid.uuid4()), job_type=PIPELINE.type, stage=STAGE, attempt=1, expected_seconds=1, mock_time_scale=0
    )


@pytest.fixture
def reporter(sent: Sent, state: AttemptState) -> Reporter:
    now = messages.now()
    due = Due(
        job_id=state.job_id,
        type=PIPELINE.type,
        step=1,
        at=now,
        created_at=now,
        trace="",
        stage=STAGE,
        reason="handed_over",
        progress=20,
    )
    return Reporter(cast("Broker", sent), due, PIPELINE, state, 20, now)


@pytest.mark.parametrize(
    "garbage",
    [float("nan"), float("inf"), "0.5", None, 7.0, -1.0, object()],
    ids=["nan", "infinity", "text", "None", "more", "less", "object"],
)
def test_the_published_progress_is_a_percentage_whatever_a_stage_forces_into_its_state(
    reporter: Reporter, sent: Sent, state: AttemptState, garbage: Any
) -> None:
    ctx = Context(state)
    ctx.report(0.5)
    before = reporter.percent()
    for name in ("_fraction", "stage", "attempt", "job_id", "expected_seconds"):
        object.__setattr__(state, name, garbage)
    reporter.mark_end(vanished=False, at=messages.now())
    [tick] = sent.ticks
    assert (tick.progress, tick.stage, tick.attempt) == (before, STAGE, 1)


def test_the_published_progress_never_decreases_while_many_threads_report(
    reporter: Reporter, state: AttemptState
) -> None:
    ctx = Context(state)
    over = threading.Event()

    def report() -> None:
        number = 0
        while not over.is_set():
            number += 1
            ctx.report(number % 100 / 100)

    threads = [threading.Thread(target=report) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        seen = [reporter.percent() for _ in range(2000)]
    finally:
        over.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
    assert seen == sorted(seen)
    assert all(20 <= percent < 100 for percent in seen)


def test_a_smaller_fraction_that_a_race_leaves_does_not_reduce_the_published_progress(
    reporter: Reporter, state: AttemptState
) -> None:
    state.report(0.9)
    before = reporter.percent()
    object.__setattr__(state, "_fraction", 0.1)
    assert reporter.percent() == before
