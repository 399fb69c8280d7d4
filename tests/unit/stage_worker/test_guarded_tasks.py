"""Tasks of a stage that try to end the event loop."""

import asyncio
import inspect
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, cast

import anyio
import pytest
import pytest_asyncio

from heimdex import Context
from heimdex.attempt_state import AttemptState
from heimdex.binding import BoundFunction
from heimdex_contracts.settlement import Errored, Finished, Outcome
from heimdex_stage_worker.execution.attempt import Attempt
from heimdex_stage_worker.execution.guarded_tasks import GuardedCoroutine, create_task
from heimdex_stage_worker.execution.threads import Threads

EXIT_TEXT = "the stage tried to end its worker"


@pytest_asyncio.fixture(autouse=True)
async def guarded() -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(create_task)
    yield
    loop.set_task_factory(None)


async def outcome_of(function: Any) -> Outcome:
    state = AttemptState(
        job_id="some-id", job_type="made_up", stage="painting", attempt=1, expected_seconds=1, mock_time_scale=0
    )
    return await asyncio.wait_for(Attempt(BoundFunction(function), state, None, Threads("painting")).run(), 20)


async def leave() -> NoReturn:
    await asyncio.sleep(0)
    sys.exit(3)


async def leave_at_once() -> NoReturn:
    raise KeyboardInterrupt


async def leave_when_cancelled() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        sys.exit(4)


async def awaits_it(_: Context) -> None:
    await asyncio.create_task(leave())


async def forgets_it(_: Context) -> None:
    asyncio.ensure_future(leave_at_once())  # noqa: RUF006  # as careless code does
    await asyncio.Event().wait()


async def gathers_it(_: Context) -> None:
    await asyncio.gather(leave(), asyncio.Event().wait(), return_exceptions=True)


async def groups_it(_: Context) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(leave())
        group.create_task(asyncio.Event().wait())


async def catches_it(_: Context) -> None:
    try:
        await asyncio.create_task(leave())
    except RuntimeError:
        await asyncio.sleep(1)


async def exits_in_a_thread(_: Context) -> None:
    await asyncio.create_task(asyncio.to_thread(sys.exit, 5))


async def exits_in_a_grandchild(_: Context) -> None:
    async def child() -> None:
        await asyncio.create_task(leave())

    await asyncio.create_task(child())


async def exits_when_cancelled(_: Context) -> None:
    task = asyncio.create_task(leave_when_cancelled())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.Event().wait()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "function",
    [
        awaits_it,
        forgets_it,
        gathers_it,
        groups_it,
        catches_it,
        exits_in_a_thread,
        exits_in_a_grandchild,
        exits_when_cancelled,
    ],
    ids=lambda function: function.__name__,
)
async def test_a_task_of_a_stage_that_exits_fails_its_attempt(function: Callable[..., Awaitable[None]]) -> None:
    outcome = await outcome_of(function)
    assert isinstance(outcome, Errored), f"instead: {outcome!r}"
    assert EXIT_TEXT in outcome.error
    assert not outcome.permanent
    assert "leave" in (outcome.traceback or "") or "thread" in (outcome.traceback or "")


async def test_a_task_that_is_cancelled_before_it_starts_leaves_no_warning() -> None:
    async def stage(_: Context) -> None:
        task = asyncio.create_task(leave())
        assert task.get_coro().__qualname__ == "leave"  # type: ignore[union-attr]
        assert "leave" in repr(task)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert await outcome_of(stage) == Finished()


async def test_tasks_outside_of_an_attempt_are_not_guarded() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    assert not isinstance(task.get_coro(), GuardedCoroutine)
    await task


async def test_libraries_that_look_into_their_tasks_work_inside_of_an_attempt() -> None:
    async def stage(_: Context) -> None:
        # anyio, which httpx uses, asks for the state of each coroutine before it cancels it.
        with anyio.move_on_after(0.01) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        task = asyncio.create_task(asyncio.sleep(3600))
        assert inspect.getcoroutinestate(cast("Any", task.get_coro())) == inspect.CORO_CREATED
        await asyncio.sleep(0)
        assert inspect.getcoroutinestate(cast("Any", task.get_coro())) == inspect.CORO_SUSPENDED
        assert task.get_stack()
        task.cancel()

    assert await outcome_of(stage) == Finished()
