"""Every way in which a stage's function can end, as one outcome."""

import asyncio
import functools
import gc
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from heimdex import Context, PermanentError, Pipeline, Stage, StageInterrupted
from heimdex.attempt_state import AttemptState
from heimdex.binding import BoundFunction, bind
from heimdex_contracts.exception_text import MAX_LENGTH
from heimdex_contracts.runtime.output.running import ATTEMPT
from heimdex_contracts.settlement import Errored, Finished, Interrupted, Outcome, Superseded
from heimdex_stage_worker.execution.attempt import Attempt
from heimdex_stage_worker.execution.current_attempt import CURRENT
from heimdex_stage_worker.execution.threads import Threads
from tests.support.histories import json_text, stage_run
from tests.support.pipelines.isolatable import ODD, OddError
from tests.support.waiting import eventually

FOREVER = 3600.0
MakeAttempt = Callable[..., Attempt]


def context(fail_at_stage: str | None = None) -> AttemptState:
    return AttemptState(
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

    def make(function: Any, timeout: float | None = None, state: AttemptState | None = None) -> Attempt:
        return Attempt(BoundFunction(function), state or context(), timeout, threads)

    return make


async def ended(attempt: Attempt) -> Outcome:
    return await asyncio.wait_for(attempt.run(), 20)


async def error_of(attempt: Attempt) -> tuple[str, bool]:
    """Return the error of a failed attempt, and whether it is permanent."""
    outcome = await ended(attempt)
    assert isinstance(outcome, Errored), f"instead: {outcome!r}"
    return outcome.error, outcome.permanent


async def finishing(_: Context) -> None: ...


async def endless(_: Context) -> None:
    await asyncio.sleep(FOREVER)


class Deaf:
    """A stage that swallows every cancellation until the test is over."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.over = False

    async def __call__(self, _: Context) -> None:
        self.started.set()
        while not self.over:
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                continue
        self.ended.set()

    async def end(self) -> None:
        """Let it end, so that nothing outlives its test."""
        self.over = True
        if self.started.is_set():
            await self.ended.wait()


def interrupted_group(text: str) -> BaseException:
    return BaseExceptionGroup(text, [KeyboardInterrupt()])


class AsyncCallable:
    async def __call__(self, _: Context) -> None:
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
    assert isinstance(await ended(attempt(function)), Finished)


async def test_a_blocking_function_runs_beside_the_event_loop(attempt: MakeAttempt) -> None:
    loop_thread, seen, go = threading.get_ident(), [], threading.Event()

    def blocking(_: Context) -> None:
        seen.append(threading.get_ident())
        assert go.wait(20)

    running = asyncio.create_task(ended(attempt(blocking)))
    await asyncio.sleep(0)
    go.set()  # only reached if the loop was not blocked
    assert await running == Finished()
    assert seen != [loop_thread]


def raises(error: BaseException) -> tuple[Any, Any]:
    async def in_async(_: Context) -> None:
        raise error

    def in_sync(_: Context) -> None:
        raise error

    return in_async, in_sync


@pytest.mark.parametrize("kind", [0, 1], ids=["async", "sync"])
async def test_an_exception_is_an_error_that_names_its_type_and_text(attempt: MakeAttempt, kind: int) -> None:
    assert await error_of(attempt(raises(ValueError("no space"))[kind])) == ("ValueError: no space", False)
    assert await error_of(attempt(raises(RuntimeError())[kind])) == ("RuntimeError", False)


@pytest.mark.parametrize("kind", [0, 1], ids=["async", "sync"])
async def test_a_permanent_error_is_permanent_with_its_own_text(attempt: MakeAttempt, kind: int) -> None:
    assert await error_of(attempt(raises(PermanentError("bad file"))[kind])) == ("bad file", True)
    assert await error_of(attempt(raises(PermanentError())[kind])) == ("PermanentError", True)


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
    assert len(outcome.error) <= MAX_LENGTH + 100


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
        outcome = await ended(Attempt(BoundFunction(function), context(), None, Threads("painting")))
        await asyncio.sleep(0)  # the loop goes on
        return outcome

    # In a loop of its own, which an exit would end.
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(asyncio.run, run())
        outcome = future.exception() or future.result()
    assert isinstance(outcome, Errored), f"instead: {outcome!r}"
    assert not outcome.permanent
    words = {asyncio.CancelledError: "cancelled itself", interrupted_group: "1 error: KeyboardInterrupt"}
    named = words.get(error) or type(error("odd")).__name__
    assert named in outcome.error


async def test_a_stage_that_cancels_itself_is_an_error(attempt: MakeAttempt) -> None:
    async def cancels(_: Context) -> None:
        raise asyncio.CancelledError

    assert await error_of(attempt(cancels)) == ("the stage cancelled itself", False)


@pytest.mark.parametrize("name", ["async", "sync", "deaf"])
async def test_a_stage_past_its_time_out_is_an_error_that_may_be_retried(attempt: MakeAttempt, name: str) -> None:
    deaf, over = Deaf(), threading.Event()

    def blocking(_: Context) -> None:
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
    running = asyncio.create_task(ended(Attempt(BoundFunction(lambda ctx: None), context(), timeout, Late("painting"))))
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
    assert await error_of(attempt(lambda ctx: None)) == ("RuntimeError: can't start new thread", False)
    monkeypatch.undo()
    assert await ended(attempt(lambda ctx: None)) == Finished()


async def test_a_function_faster_than_its_time_out_is_finished(attempt: MakeAttempt) -> None:
    assert await ended(attempt(finishing, timeout=30)) == Finished()


@pytest.mark.parametrize(("end", "outcome"), [("interrupt", Interrupted()), ("supersede", Superseded())])
async def test_a_running_attempt_ends_as_requested(attempt: MakeAttempt, end: str, outcome: Outcome) -> None:
    started = asyncio.Event()

    async def waits(ctx: Context) -> None:
        started.set()
        await endless(ctx)

    current = attempt(waits)
    running = asyncio.create_task(ended(current))
    await started.wait()
    getattr(current, end)()
    assert await running == outcome


async def test_a_blocking_stage_is_interrupted_when_it_reports(attempt: MakeAttempt) -> None:
    started, heard = threading.Event(), threading.Event()

    def blocking(ctx: Context) -> None:
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

    async def function(ctx: Context) -> None:
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
    current = attempt(called.append)
    current.supersede()
    assert await ended(current) == Superseded()
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
    outcome = await ended(attempt(called.append, state=context("painting")))
    assert isinstance(outcome, Errored)
    assert "painting" in outcome.error
    assert (called, outcome.permanent) == ([], False)
    assert await ended(attempt(called.append, state=context("sculpting"))) == Finished()


async def test_a_child_task_and_a_thread_of_it_know_the_attempt_that_they_belong_to(attempt: MakeAttempt) -> None:
    seen: list[Attempt | None] = []

    async def in_child() -> None:
        seen.append(CURRENT.get())

    async def function(_: Context) -> None:
        await asyncio.create_task(in_child())
        await asyncio.to_thread(lambda: seen.append(CURRENT.get()))

    first, second = attempt(function), attempt(lambda ctx: seen.append(CURRENT.get()))
    assert await ended(first) == Finished()
    assert await ended(second) == Finished()
    assert seen == [first, first, second]
    assert CURRENT.get() is None


@pytest.mark.parametrize("blocking", [False, True], ids=["async", "sync"])
async def test_what_a_stage_logs_names_its_attempt(attempt: MakeAttempt, blocking: bool) -> None:
    seen: list[dict[str, Any]] = []

    async def function(_: Context) -> None:
        seen.append(dict(ATTEMPT.get()))

    def in_thread(_: Context) -> None:
        seen.append(dict(ATTEMPT.get()))

    assert await ended(attempt(in_thread if blocking else function)) == Finished()
    assert seen == [{"job_id": "some-id", "stage": "painting", "attempt": 1}]
    assert ATTEMPT.get() == {}


async def test_an_attempt_fails_with_an_error_that_was_raised_elsewhere_for_it(attempt: MakeAttempt) -> None:
    current = attempt(endless)
    running = asyncio.create_task(ended(current))
    await asyncio.sleep(0)
    current.fail(SystemExit("a child task exits"))
    current.interrupt()
    outcome = await running
    assert isinstance(outcome, Errored)
    assert outcome.error == "the stage tried to end its worker: SystemExit: a child task exits"


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["async", "sync", "sync that returns an awaitable"])
async def test_a_stage_that_claims_an_interruption_that_did_not_happen_failed(attempt: MakeAttempt, kind: int) -> None:
    in_async, in_sync = raises(StageInterrupted("I stop here"))
    function = (in_async, in_sync, lambda ctx: in_async(ctx))[kind]
    error, permanent = await error_of(attempt(function))
    assert "StageInterrupted although nobody interrupted it" in error
    assert not permanent


def generator(_: Context) -> Iterator[int]:
    yield 1


async def async_generator(_: Context) -> AsyncIterator[int]:
    yield 1


async def never(_: Context) -> None:
    pytest.fail("a coroutine that nobody awaits does not run")


async def returns_a_task(ctx: Context) -> Any:
    task = asyncio.create_task(endless(ctx))
    ctx_task.append(task)
    return task


ctx_task: list[asyncio.Task[None]] = []


async def returning(make: Callable[[Context], Any], ctx: Context) -> Any:
    return make(ctx)


LAZY: dict[str, Any] = {
    "generator": generator,
    "async generator": async_generator,
    "map object": lambda ctx: map(str, [1]),
    "filter object": lambda ctx: filter(None, [1]),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("blocking", [False, True], ids=["async", "sync"])
@pytest.mark.parametrize("name", LAZY)
async def test_a_stage_that_returns_code_that_has_not_run_failed(
    attempt: MakeAttempt, name: str, blocking: bool
) -> None:
    function = LAZY[name] if blocking else functools.partial(returning, LAZY[name])
    error, permanent = await error_of(attempt(function))
    assert f"{name}: its code has not run" in error
    assert not permanent


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("blocking", [False, True], ids=["async", "sync that returns an awaitable"])
async def test_a_stage_that_returns_a_coroutine_that_nobody_awaits_failed(attempt: MakeAttempt, blocking: bool) -> None:
    function = functools.partial(returning, never)
    error, _ = await error_of(attempt((lambda ctx: function(ctx)) if blocking else function))
    assert "an awaitable that nobody awaits: its code has not run" in error
    gc.collect()  # Python would warn


async def test_a_task_that_a_stage_returns_does_not_run_on(attempt: MakeAttempt) -> None:
    error, _ = await error_of(attempt(returns_a_task))
    assert "an awaitable that nobody awaits" in error
    await asyncio.wait(ctx_task, timeout=20)
    assert ctx_task.pop().cancelled()


async def test_a_function_that_ignores_its_end_runs_until_it_returns(attempt: MakeAttempt) -> None:
    deaf, over = Deaf(), threading.Event()

    async def function(ctx: Context) -> None:
        await deaf(ctx)

    try:
        for current in (attempt(function, timeout=0.05), attempt(lambda ctx: over.wait(FOREVER), timeout=0.05)):
            assert "time-out" in (await error_of(current))[0]
            assert current.goes_on is not None
            assert not current.goes_on.done()
    finally:
        await deaf.end()
        over.set()
    await eventually(lambda: current.goes_on is None)
    assert attempt(finishing).goes_on is None


def where_it_blocks(over: threading.Event) -> None:
    over.wait(FOREVER)


async def where_it_waits() -> None:
    await endless(Context(context()))


@pytest.mark.parametrize("kind", ["async", "sync", "sync that returns an awaitable"])
async def test_a_time_out_shows_where_the_function_is(attempt: MakeAttempt, kind: str) -> None:
    over = threading.Event()

    async def waits(_: Context) -> None:
        await where_it_waits()

    functions = {"async": waits, "sync": lambda ctx: where_it_blocks(over)}
    outcome = await ended(attempt(functions.get(kind, lambda ctx: waits(ctx)), timeout=0.3))
    over.set()
    assert isinstance(outcome, Errored)
    assert outcome.traceback is not None
    assert ("where_it_blocks" if kind == "sync" else "where_it_waits") in outcome.traceback
    assert "execution/attempt.py" not in outcome.traceback, "its own frames are of no interest"


@pytest.mark.parametrize("blocking", [False, True], ids=["async", "sync"])
async def test_an_error_has_the_traceback_of_the_stages_own_frames(attempt: MakeAttempt, blocking: bool) -> None:
    outcome = await ended(attempt(raises(KeyError("frames"))[blocking]))
    assert isinstance(outcome, Errored)
    lines = (outcome.traceback or "").splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "in in_sync" in lines[1] or "in in_async" in lines[1]
    assert lines[-1] == "KeyError: 'frames'"


class Frames(msgspec.Struct):
    count: int


async def frames_async(_: Context) -> Frames:
    return Frames(24)


def frames_of_an_awaitable(ctx: Context) -> Any:
    return frames_async(ctx)


RETURNING: dict[str, Any] = {
    "blocking": lambda ctx: Frames(24),
    "async": frames_async,
    "blocking that returns an awaitable": frames_of_an_awaitable,
}


@pytest.mark.parametrize("function", RETURNING.values(), ids=RETURNING)
async def test_what_a_function_returns_is_its_output_as_json(function: Any) -> None:
    bound = BoundFunction(function, output=Frames)
    outcome = await ended(Attempt(bound, context(), None, Threads("painting")))
    assert isinstance(outcome, Finished)
    assert bytes(outcome.output) == b'{"count":24}'


@pytest.mark.parametrize("function", RETURNING.values(), ids=RETURNING)
async def test_an_output_of_another_type_than_declared_fails_the_attempt_without_a_traceback(function: Any) -> None:
    bound = BoundFunction(function, output=int)
    outcome = await ended(Attempt(bound, context(), None, Threads("painting")))
    assert isinstance(outcome, Errored)
    assert outcome.error.startswith("the output does not fit the declared type int")
    assert (outcome.permanent, outcome.traceback) == (False, None)


async def test_the_output_of_a_blocking_function_is_encoded_in_its_thread_and_of_an_async_one_on_the_loop() -> None:
    encoded_in: list[int] = []

    class Watched(msgspec.Struct):
        count: int

        def __post_init__(self) -> None:
            encoded_in.append(threading.get_ident())

    async def on_the_loop(_: Context) -> dict[str, int]:
        return {"count": 1}

    await ended(Attempt(BoundFunction(lambda ctx: {"count": 1}, output=Watched), context(), None, Threads("painting")))
    await ended(Attempt(BoundFunction(on_the_loop, output=Watched), context(), None, Threads("painting")))
    assert encoded_in[0] != threading.get_ident()
    assert encoded_in[1] == threading.get_ident()


async def test_the_outputs_of_all_stages_together_are_limited() -> None:
    state = context()
    state.finished = tuple(stage_run(f"stage{number}", json_text(16_000)) for number in range(4))
    outcome = await ended(Attempt(BoundFunction(lambda ctx: "x" * 2000), state, None, Threads("painting")))
    assert isinstance(outcome, Errored)
    assert "together" in outcome.error


@pytest.mark.parametrize("blocking", [True, False])
async def test_an_argument_that_does_not_fit_its_type_any_more_fails_the_attempt_which_a_retry_may_cure(
    blocking: bool,
) -> None:
    called: list[Any] = []

    async def function(params: Frames) -> None:
        called.append(params)

    def in_thread(params: Frames) -> None:
        called.append(params)

    pipeline = Pipeline("film", (Stage("painting", 1, "some:code"),), params=Frames)
    bound = bind(in_thread if blocking else function, pipeline, pipeline.stages[0])
    state = context()
    state.params = msgspec.Raw(b'{"count":"many"}')
    outcome = await ended(Attempt(bound, state, None, Threads("painting")))
    assert isinstance(outcome, Errored)
    assert outcome.error.startswith("the job's params do not fit the type Frames of the job type 'film' any more: ")
    assert (outcome.permanent, outcome.traceback, called) == (False, None, [])
    state = context()
    state.params = msgspec.Raw(b'{"count":7}')
    assert isinstance(await ended(Attempt(bound, state, None, Threads("painting"))), Finished)
    assert called == [Frames(7)]
