"""An attempt in a process of its own, against such processes."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from heimdex.attempt_state import AttemptState
from heimdex_contracts.messages import NOTHING
from heimdex_contracts.runtime.forks import EXIT_FORKED
from heimdex_contracts.settlement import Errored, Finished, Interrupted, Outcome, Superseded
from heimdex_stage_worker.execution.failures import MAX_TRACEBACK_BYTES
from heimdex_stage_worker.execution.subprocess_attempt import IsolatedAttempt
from tests.support import histories
from tests.support.pipelines import carrying, isolatable
from tests.support.services import ROOT
from tests.support.waiting import eventually


def _path(*folders: str) -> str:
    return os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", _path(str(ROOT)))


class ChildProcess:
    """The one that `leave_child` leaves."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def pid(self) -> int:
        return int(self.path.read_text()) if self.path.exists() else 0

    def lives(self) -> bool:
        try:
            return self.pid != 0 and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChildProcess]:
    child = ChildProcess(tmp_path / "child")
    monkeypatch.setenv(isolatable.CHILD, str(child.path))
    yield child
    if child.lives():
        os.kill(child.pid, signal.SIGKILL)


def isolated(
    function: str, task: str = "", timeout: float | None = None, slots: asyncio.Semaphore | None = None
) -> IsolatedAttempt:
    """Return an attempt of this function. task: what the function does, passed as the job type."""
    state = AttemptState(
        job_id="some-id", job_type=task, stage="painting", attempt=3, expected_seconds=1, mock_time_scale=0
    )
    return IsolatedAttempt(f"{isolatable.__name__}:{function}", state, timeout, slots or asyncio.Semaphore(1))


def carried(fault: str, attempt: int = 3) -> IsolatedAttempt:
    """Return an attempt of `carrying.mix`, which takes params and an output, in a process that loads its pipelines."""
    state = AttemptState(
        job_id="some-id", job_type="film", stage="mixing-down", attempt=attempt, expected_seconds=1, mock_time_scale=0
    )
    # JSON of another publisher may have line feeds between its tokens.
    state.params = msgspec.Raw(b'{\n"title": "a", "fault": "%s"}' % fault.encode())
    state.finished = (histories.stage_run("cutting", msgspec.Raw('{"title":"Ä 🍎","seconds":[0.5,1]}'.encode())),)
    code = f"{carrying.__name__}:mix"
    return IsolatedAttempt(code, state, None, asyncio.Semaphore(1), (carrying.__name__,))


async def test_params_and_outputs_go_into_the_process_and_the_output_comes_out() -> None:
    outcome = await ended(carried(""))
    assert isinstance(outcome, Finished), outcome
    assert bytes(outcome.output) == b'{"loudness":1.5,"attempt":3}'


async def test_an_output_that_is_refused_in_the_process_is_its_error() -> None:
    outcome = await ended(carried("nan"))
    assert isinstance(outcome, Errored)
    assert outcome.error.startswith("the output contains a NaN")
    assert (outcome.permanent, outcome.vanished, outcome.traceback) == (False, False, None)


async def test_a_requested_delay_comes_out_of_the_process() -> None:
    outcome = await ended(carried("later", attempt=1))
    assert isinstance(outcome, Errored)
    assert (outcome.error, outcome.retry_after_seconds) == ("the mixer is busy", 0.2)


async def test_a_process_without_an_output_returns_the_empty_one_of_the_messages() -> None:
    outcome = await ended(isolated("return_at_once"))
    assert isinstance(outcome, Finished)
    assert outcome.output is NOTHING, "another empty Raw would be encoded as invalid JSON"


async def ended(attempt: IsolatedAttempt) -> Outcome:
    return await asyncio.wait_for(attempt.run(), 40)


@pytest.mark.parametrize("function", ["raise_blocking", "raise_async"])
@pytest.mark.parametrize("name", isolatable.ODD)
async def test_no_exception_of_a_stage_hangs_its_process_or_ends_it_without_a_report(function: str, name: str) -> None:
    outcome = await ended(isolated(function, name))
    assert isinstance(outcome, Errored), f"instead: {outcome!r}"
    assert not outcome.vanished
    assert not outcome.permanent
    assert ("cancelled itself" if name == "CancelledError" else name) in outcome.error


@pytest.mark.parametrize("end", ["dies", "returns"])
@pytest.mark.parametrize("how", ["fork", "bare", "escaping"])
async def test_the_attempt_is_over_when_its_process_ends_whatever_child_it_leaves(
    child: ChildProcess, how: str, end: str
) -> None:
    outcome = await ended(isolated("leave_child", f"{how}-{end}"))
    if end == "returns":
        assert outcome == Finished()
    else:
        assert isinstance(outcome, Errored), f"instead: {outcome!r}"
        assert outcome.vanished
        assert "worker lost" in outcome.error
        assert "SIGKILL" in outcome.error
    assert child.pid
    if how == "escaping":
        assert child.lives(), "as a daemon does that leaves its session"
    else:
        await eventually(lambda: not child.lives(), what="its child ends with it")


@pytest.mark.parametrize(("end", "outcome"), [("interrupt", Interrupted()), ("supersede", Superseded())])
@pytest.mark.parametrize("how", ["fork", "bare", "escaping"])
async def test_an_attempt_that_is_ended_frees_its_slot_whatever_child_it_leaves(
    child: ChildProcess, how: str, end: str, outcome: Outcome
) -> None:
    slots = asyncio.Semaphore(1)
    attempt = isolated("leave_child", f"{how}-waits", slots=slots)
    running = asyncio.create_task(ended(attempt))
    await eventually(child.lives)
    getattr(attempt, end)()
    assert await running == outcome
    if how != "escaping":
        await eventually(lambda: not child.lives(), what="its child ends with it")
    assert await ended(isolated("return_at_once", slots=slots)) == Finished()


@pytest.mark.parametrize("turns", [0, 10], ids=["before it runs", "while it waits"])
async def test_an_attempt_that_is_ended_before_it_has_a_slot_does_not_wait_for_one(turns: int) -> None:
    slots = asyncio.Semaphore(0)
    attempt = isolated("return_at_once", slots=slots)
    running = asyncio.create_task(ended(attempt))
    for _ in range(turns):
        await asyncio.sleep(0)
    attempt.supersede()
    assert await running == Superseded()
    slots.release()
    assert await ended(isolated("return_at_once", slots=slots)) == Finished()


async def test_a_time_out_ends_the_process_and_its_child(child: ChildProcess) -> None:
    outcome = await ended(isolated("leave_child", "fork-waits", timeout=1))
    assert isinstance(outcome, Errored)
    assert "time-out of 1 s" in outcome.error
    assert not outcome.vanished
    await eventually(lambda: not child.lives(), what="its child ends with it")


async def test_a_time_out_does_not_count_the_start_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(4)")
    monkeypatch.setenv("PYTHONPATH", _path(str(tmp_path), str(ROOT)))
    assert await ended(isolated("return_at_once", timeout=3)) == Finished()


async def test_a_worker_whose_stage_has_changed_its_folder_still_finds_the_stages_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", _path(os.path.relpath(ROOT)))  # noqa: ASYNC240  # text only
    monkeypatch.chdir(tmp_path)
    assert await ended(isolated("return_at_once")) == Finished()


@pytest.mark.parametrize("function", ["exit_in_task", "exit_in_callback", "stop_loop"])
async def test_code_that_ends_the_event_loop_of_its_process_fails_the_attempt(function: str) -> None:
    outcome = await ended(isolated(function))
    assert isinstance(outcome, Errored), f"instead: {outcome!r}"
    assert not outcome.vanished
    assert ("Event loop stopped" if function == "stop_loop" else "tried to end its worker") in outcome.error


async def test_a_forked_child_that_returns_does_not_run_the_attempt_on() -> None:
    outcome = await ended(isolated("fork_and_return"))
    assert isinstance(outcome, Errored)
    assert f"ended with {EXIT_FORKED}" in outcome.error


async def test_a_hostile_exception_is_described_through_the_pipe() -> None:
    outcome = await ended(isolated("raise_hostile"))
    assert isinstance(outcome, Errored)
    assert not outcome.vanished
    assert outcome.error.startswith("XXX")
    assert outcome.traceback is not None
    assert len(outcome.traceback.encode()) <= MAX_TRACEBACK_BYTES
    assert "in raise_hostile" in outcome.traceback
    assert "\x00" not in outcome.error + outcome.traceback


async def test_a_permanent_error_in_a_group_is_permanent_through_the_pipe() -> None:
    outcome = await ended(isolated("raise_group"))
    assert isinstance(outcome, Errored)
    assert (outcome.error, outcome.permanent) == ("the file is not a video", True)
    assert "in raise_group" in (outcome.traceback or "")


@pytest.mark.parametrize("function", ["ignore_cancellation", "wait_in_a_thread"])
async def test_a_time_out_in_the_process_shows_where_the_function_is(function: str) -> None:
    outcome = await ended(isolated(function, timeout=0.5))
    assert isinstance(outcome, Errored)
    assert "time-out of 0.5 s" in outcome.error
    assert f"in {function}" in (outcome.traceback or "")


async def test_a_stage_that_forges_its_progress_does_not_break_the_reports() -> None:
    assert await ended(isolated("report_garbage")) == Finished()
