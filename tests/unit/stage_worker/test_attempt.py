"""Every way in which a stage's function can end, as one outcome."""

import asyncio
import functools
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from heimdex_contracts.errors import SettingsError
from heimdex_contracts.settlement import Errored, Finished, Interrupted, Outcome, Superseded
from heimdex_stage_worker.context import PermanentError, StageContext, StageInterrupted
from heimdex_stage_worker.execution.attempt import MAX_ERROR_LENGTH, Attempt, load_stage
from heimdex_stage_worker.execution.threads import Threads
from tests.support.pipelines.isolatable import ODD, OddError

FOREVER = 3600.0
MakeAttempt = Callable[..., Attempt]


def context(fail_at_stage: str | None = None) -> StageContext:
    return StageContext(
        job_id="some-id",
        job_type="made_up",
        stage="painting",
        attempt=1,
        expected_seconds=1,
        mock_time_scale=0,
        fail_at_stage=fail_at_stage,
    )


@pytest.fixture
def attempt() -> MakeAttempt:
    threads = Threads("painting")

    def make(function: Any, timeout: float | None = None, ctx: StageContext | None = None) -> Attempt:
        return Attempt(function, ctx or context(), timeout, threads)

    return make


async def ended(attempt: Attempt) -> Outcome:
    return await asyncio.wait_for(attempt.run(), 20)


async def finishing(_: StageContext) -> str:
    return "ignored"


async def endless(_: StageContext) -> None:
    await asyncio.sleep(FOREVER)


class Deaf:
    """A stage that ignores every cancellation until the test is over."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.over = False

    async def __call__(self, _: StageContext) -> None:
        self.started.set()
        while not self.over:
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                continue
        self.ended.set()

    async def end(self) -> None:
        """Let the function end, so that it does not outlive its test."""
        self.over = True
        if self.started.is_set():
            await self.ended.wait()


def interrupted_group(text: str) -> BaseException:
    return BaseExceptionGroup(text, [KeyboardInterrupt()])


class AsyncCallable:
    async def __call__(self, _: StageContext) -> None:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "function",
    [
        finishing,
        lambda ctx: None,
        lambda ctx: 42,
        lambda ctx: asyncio.sleep(0),
        functools.partial(finishing),
        AsyncCallable(),
    ],
    ids=["async", "sync", "sync with a value", "sync that returns an awaitable", "partial", "callable object"],
)
async def test_an_attempt_is_finished_when_the_function_returns(attempt: MakeAttempt, function: Any) -> None:
    assert await ended(attempt(function)) == Finished()


async def test_a_blocking_function_runs_beside_the_event_loop(attempt: MakeAttempt) -> None:
    loop_thread, seen, go = threading.get_ident(), [], threading.Event()

    def blocking(_: StageContext) -> None:
        seen.append(threading.get_ident())
        assert go.wait(20)

    running = asyncio.create_task(ended(attempt(blocking)))
    await asyncio.sleep(0)
    go.set()  # only reached if the loop was not blocked
    assert await running == Finished()
    assert seen != [loop_thread]


def raises(error: BaseException) -> tuple[Any, Any]:
    async def in_async(_: StageContext) -> None:
        raise error

    def in_sync(_: StageContext) -> None:
        raise error

    return in_async, in_sync


@pytest.mark.parametrize("kind", [0, 1], ids=["async", "sync"])
async def test_an_exception_is_an_error_that_names_its_type_and_text(attempt: MakeAttempt, kind: int) -> None:
    assert await ended(attempt(raises(ValueError("no space"))[kind])) == Errored("ValueError: no space")
    assert await ended(attempt(raises(RuntimeError())[kind])) == Errored("RuntimeError")


@pytest.mark.parametrize("kind", [0, 1], ids=["async", "sync"])
async def test_a_permanent_error_is_permanent_with_its_own_text(attempt: MakeAttempt, kind: int) -> None:
    assert await ended(attempt(raises(PermanentError("bad file"))[kind])) == Errored("bad file", permanent=True)
    assert await ended(attempt(raises(PermanentError())[kind])) == Errored("PermanentError", permanent=True)


TEXTS = {"NUL": "nul \x00 inside", "surrogate": "lone surrogate \ud800", "long": "x" * 100_000}


@pytest.mark.parametrize("kind", TEXTS)
async def test_an_errors_text_can_be_stored_whatever_it_contains(attempt: MakeAttempt, kind: str) -> None:
    outcome = await ended(attempt(raises(ValueError(TEXTS[kind]))[0]))
    assert isinstance(outcome, Errored)
    try:
        text = outcome.error.encode()
    except UnicodeEncodeError as error:
        pytest.fail(f"it is no UTF-8: {error}", pytrace=False)  # nor could this test's report be sent anywhere
    assert b"\x00" not in text
    assert len(outcome.error) <= MAX_ERROR_LENGTH + 100


@pytest.mark.parametrize("reason", [RuntimeError("not telling"), OddError("not telling")], ids=["error", "odd error"])
async def test_an_exception_whose_text_cannot_be_read_is_still_an_error(
    attempt: MakeAttempt, reason: BaseException
) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise reason

    outcome = await ended(attempt(raises(Unspeakable())[0]))
    assert isinstance(outcome, Errored)
    assert "Unspeakable" in outcome.error


async def test_a_blocking_stage_that_exits_does_not_end_its_worker(attempt: MakeAttempt) -> None:
    outcome = await ended(attempt(lambda ctx: sys.exit(3)))
    assert isinstance(outcome, Errored)
    assert "SystemExit" in outcome.error


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["async", "sync", "sync that returns an awaitable"])
@pytest.mark.parametrize("error", [*ODD.values(), interrupted_group])
def test_no_exception_of_a_stage_hangs_its_job_or_ends_its_worker(
    error: Callable[[str], BaseException], kind: int
) -> None:
    in_async, in_sync = raises(error("odd"))
    function = (in_async, in_sync, lambda ctx: in_async(ctx))[kind]

    async def run() -> Outcome:
        outcome = await ended(Attempt(function, context(), None, Threads("painting")))
        await asyncio.sleep(0)  # the event loop continues
        return outcome

    # In a loop of its own, which an exit would end.
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(asyncio.run, run())
        outcome = future.exception() or future.result()
    assert isinstance(outcome, Errored), f"instead: {outcome!r}"
    assert not outcome.permanent
    named = "cancelled itself" if error is asyncio.CancelledError else type(error("odd")).__name__
    assert named in outcome.error


async def test_a_stage_that_cancels_itself_is_an_error(attempt: MakeAttempt) -> None:
    async def cancels(_: StageContext) -> None:
        raise asyncio.CancelledError

    assert await ended(attempt(cancels)) == Errored("the stage cancelled itself")


@pytest.mark.parametrize("name", ["async", "sync", "deaf"])
async def test_a_stage_past_its_time_out_is_an_error_that_may_be_retried(attempt: MakeAttempt, name: str) -> None:
    deaf, over = Deaf(), threading.Event()

    def blocking(_: StageContext) -> None:
        over.wait(FOREVER)

    function = {"async": endless, "sync": blocking, "deaf": deaf}[name]
    try:
        outcome = await ended(attempt(function, timeout=0.05))
    finally:
        await deaf.end()
        over.set()
    assert isinstance(outcome, Errored)
    assert "time-out of 0.05 s" in outcome.error
    assert not outcome.permanent


async def test_a_time_out_counts_from_the_moment_the_function_is_called() -> None:
    class Late(Threads):
        def submit(self, function: Callable[[], Any]) -> Future[Any]:
            def late() -> Any:
                assert go.wait(FOREVER)
                return function()

            return super().submit(late)

    go, timeout = threading.Event(), 2.0
    running = asyncio.create_task(ended(Attempt(lambda ctx: None, context(), timeout, Late("painting"))))
    done, _ = await asyncio.wait({running}, timeout=1.5 * timeout)
    go.set()
    assert not done, f"it is over before it was called: {running.result()}"
    assert await running == Finished()


async def test_a_thread_that_cannot_be_started_is_an_error(
    attempt: MakeAttempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await ended(attempt(lambda ctx: None)) == Finished()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "painting":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert await ended(attempt(lambda ctx: None)) == Errored("RuntimeError: can't start new thread")
    monkeypatch.undo()
    assert await ended(attempt(lambda ctx: None)) == Finished()


async def test_a_function_faster_than_its_time_out_is_finished(attempt: MakeAttempt) -> None:
    assert await ended(attempt(finishing, timeout=30)) == Finished()


@pytest.mark.parametrize(("end", "outcome"), [("interrupt", Interrupted()), ("supersede", Superseded())])
async def test_a_running_attempt_ends_as_requested(attempt: MakeAttempt, end: str, outcome: Outcome) -> None:
    started = asyncio.Event()

    async def waits(ctx: StageContext) -> None:
        started.set()
        await endless(ctx)

    current = attempt(waits)
    running = asyncio.create_task(ended(current))
    await started.wait()
    getattr(current, end)()
    assert await running == outcome


async def test_a_blocking_stage_is_interrupted_when_it_reports(attempt: MakeAttempt) -> None:
    started, heard = threading.Event(), threading.Event()

    def blocking(ctx: StageContext) -> None:
        started.set()
        try:
            while True:
                ctx.report(0.1)
        except StageInterrupted:
            heard.set()
            raise

    current = attempt(blocking)
    running = asyncio.create_task(ended(current))
    assert await asyncio.to_thread(started.wait, 20)
    current.interrupt()
    assert await running == Interrupted()
    assert await asyncio.to_thread(heard.wait, 20)


async def test_an_interrupted_stage_that_does_not_react_is_still_handed_back(attempt: MakeAttempt) -> None:
    deaf = Deaf()

    async def function(ctx: StageContext) -> None:
        await deaf(ctx)

    current = attempt(function)
    running = asyncio.ensure_future(current.run())
    await deaf.started.wait()
    current.interrupt()
    done, _ = await asyncio.wait({running}, timeout=10)
    await deaf.end()
    assert done, "the interrupted attempt never ended"
    assert running.result() == Interrupted()


async def test_an_attempt_that_is_ended_before_it_began_never_calls_the_function(attempt: MakeAttempt) -> None:
    called = []
    running = attempt(called.append)
    running.supersede()
    assert await ended(running) == Superseded()
    assert called == []


async def test_the_first_reason_to_end_wins_and_a_finished_attempt_stays_finished(attempt: MakeAttempt) -> None:
    current = attempt(endless)
    running = asyncio.create_task(ended(current))
    await asyncio.sleep(0)
    current.supersede()
    current.interrupt()
    assert await running == Superseded()

    current = attempt(finishing)
    assert await ended(current) == Finished()
    current.interrupt()
    assert await ended(attempt(finishing)) == Finished()


async def test_fail_at_stage_is_an_error_at_the_start_of_that_stage_only(attempt: MakeAttempt) -> None:
    called: list[Any] = []
    outcome = await ended(attempt(called.append, ctx=context("painting")))
    assert isinstance(outcome, Errored)
    assert "painting" in outcome.error
    assert (called, outcome.permanent) == ([], False)
    assert await ended(attempt(called.append, ctx=context("sculpting"))) == Finished()


def test_load_stage_returns_the_function() -> None:
    from heimdex_stage_worker.stages import analyzing

    assert load_stage("heimdex_stage_worker.stages.analyzing:run") is analyzing.run


@pytest.mark.parametrize(
    "code", ["no.such.module:run", "heimdex_stage_worker.stages.analyzing:gone", "json:__name__", "json", "", ":run"]
)
def test_load_stage_refuses_code_that_is_not_a_function(code: str) -> None:
    with pytest.raises(SettingsError):
        load_stage(code)
