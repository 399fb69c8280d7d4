"""Functions that run on after their attempts, in threads and on the event loop."""

import asyncio
import threading
from collections.abc import Iterator
from typing import cast

import pytest

from heimdex.attempt_state import AttemptState
from heimdex_contracts.runtime.logs import Logger
from heimdex_stage_worker.execution.stuck_functions import StuckFunctions
from heimdex_stage_worker.execution.threads import Threads
from tests.support.recording_logger import RecordingLogger
from tests.support.waiting import eventually


def state(number: int) -> AttemptState:
    return AttemptState(
        job_id=f"job-{number}", job_type="made_up", stage="painting", attempt=1, expected_seconds=1, mock_time_scale=0
    )


def stuck_functions(most: int, log: RecordingLogger) -> StuckFunctions:
    return StuckFunctions(most, cast("Logger", log), ends_within_seconds=0.1, cancelled_again_seconds=0.1)


@pytest.fixture
def over() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


async def swallow(over: threading.Event, cancellations: int | None = None) -> None:
    """Wait for the end of the test, through so many cancellations; None: all."""
    while not over.is_set():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            if cancellations is not None:
                cancellations -= 1
                if cancellations < 0:
                    raise


async def test_tasks_and_threads_that_run_on_are_counted_together_until_they_are_too_many(
    over: threading.Event,
) -> None:
    log = RecordingLogger()
    stuck = stuck_functions(2, log)
    task = asyncio.create_task(swallow(over))
    stuck.watch(task, state(1))
    await eventually(lambda: log.of("task_abandoned"))
    assert not stuck.too_many.is_set()
    thread = Threads("painting").submit(over.wait)
    await eventually(thread.running)
    stuck.watch(thread, state(2))
    await asyncio.wait_for(stuck.too_many.wait(), 20)
    assert [(each["job_id"], each["abandoned"]) for each in log.of("task_abandoned")] == [("job-1", 1)]
    assert [(each["job_id"], each["abandoned"]) for each in log.of("thread_abandoned")] == [("job-2", 2)]
    assert log.of("too_many_threads_abandoned")
    over.set()
    await task


async def test_a_task_that_swallows_one_cancellation_ends_with_the_next(over: threading.Event) -> None:
    log = RecordingLogger()
    stuck = stuck_functions(1, log)
    task = asyncio.create_task(swallow(over, cancellations=0))
    await asyncio.sleep(0)
    stuck.watch(task, state(1))
    await asyncio.wait({task}, timeout=20)
    assert task.cancelled()
    ended = asyncio.get_running_loop().time() + 0.3
    await eventually(lambda: asyncio.get_running_loop().time() > ended)
    assert log.entries == []


async def test_a_function_that_ends_in_time_is_not_counted() -> None:
    log = RecordingLogger()
    stuck = stuck_functions(1, log)
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    stuck.watch(task, state(1))
    ended = asyncio.get_running_loop().time() + 0.3
    await eventually(lambda: asyncio.get_running_loop().time() > ended)
    assert log.entries == []
