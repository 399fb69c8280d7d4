"""The commands of a stage, against real processes: what they return, and that nothing of them is left."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from heimdex import CommandFailed, Context
from heimdex.attempt_state import AttemptState
from heimdex.binding import BoundFunction
from heimdex_contracts.settlement import Errored, Finished, Interrupted, Outcome, Superseded
from heimdex_stage_worker.execution import command_launcher
from heimdex_stage_worker.execution import commands as subject
from heimdex_stage_worker.execution.attempt import Attempt
from heimdex_stage_worker.execution.subprocess_attempt import IsolatedAttempt
from heimdex_stage_worker.execution.threads import Threads
from tests.support.pipelines import commands
from tests.support.pipelines.commands import Processes
from tests.support.recording_logger import RecordingLogger
from tests.support.services import ROOT
from tests.support.waiting import eventually

KINDS = ["async", "sync"]


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    processes = Processes(tmp_path / "commands")
    monkeypatch.setenv(commands.FOLDER, str(processes.folder))
    yield processes
    for path in processes.folder.glob("*.pids"):
        for pid in processes.living([int(line) for line in path.read_text().splitlines()]):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def log() -> RecordingLogger:
    return RecordingLogger()


def state(job_type: str = "endless") -> AttemptState:
    return AttemptState(
        job_id="some-id", job_type=job_type, stage="painting", attempt=1, expected_seconds=1, mock_time_scale=0
    )


def attempt(function: Any, log: RecordingLogger, timeout: float | None = None, job_type: str = "endless") -> Attempt:
    return Attempt(BoundFunction(function), state(job_type), timeout, Threads("painting"), log)


async def ended(attempt: Attempt | IsolatedAttempt) -> Outcome:
    return await asyncio.wait_for(attempt.run(), 60)


async def run(log: RecordingLogger, kind: str, *words: Any, **options: Any) -> Any:
    """Run a command in an attempt of this kind; return its result, or the exception that it raised."""
    results: list[Any] = []

    def blocking(ctx: Context) -> None:
        try:
            results.append(ctx.run_command(list(words), **options))
        except Exception as error:
            results.append(error)

    async def awaiting(ctx: Context) -> None:
        try:
            results.append(await ctx.run_command(list(words), **options))
        except Exception as error:
            results.append(error)

    assert await ended(attempt(awaiting if kind == "async" else blocking, log)) == Finished()
    return results.pop()


def launchers() -> list[psutil.Process]:
    """Return the processes that run commands for this one."""
    return [each for each in psutil.Process().children() if command_launcher.__file__ in each.cmdline()]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_command_returns_its_output_as_bytes(log: RecordingLogger, kind: str) -> None:
    result = await run(log, kind, "sh", "-c", "cat; printf '%s' \"$1\"", "-", "\udcff'", input=b"\x00" * 200_000)
    assert isinstance(result, subprocess.CompletedProcess)
    assert (result.returncode, result.stdout) == (0, b"\x00" * 200_000 + b"\xff'")


async def test_a_command_has_the_folder_the_environment_and_the_file_that_it_is_given(
    log: RecordingLogger, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    result = await run(
        log, "sync", "/bin/sh", "-c", "pwd; echo $COLOUR $HOME", cwd=tmp_path, env={"COLOUR": "red"}, stdout=output
    )
    assert (result.returncode, result.stdout) == (0, None)
    assert output.read_text() == f"{tmp_path}\nred\n"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_command_that_fails_raises_its_name_exit_code_and_last_lines(log: RecordingLogger, kind: str) -> None:
    script = "echo first; for i in $(seq 20); do echo line $i >&2; done; exit 3"
    error = await run(log, kind, "sh", "-c", script)
    assert isinstance(error, CommandFailed)
    assert isinstance(error, subprocess.CalledProcessError)
    assert (error.returncode, error.stdout) == (3, b"first\n")
    assert str(error).startswith("the command 'sh' ended with exit code 3; its last lines were: line 11\n")
    assert str(error).endswith("line 20")
    assert (await run(log, kind, "sh", "-c", script, check=False)).returncode == 3
    assert "was killed by SIGKILL" in str(await run(log, kind, "sh", "-c", "kill -9 $$"))


@pytest.mark.parametrize("kind", KINDS)
async def test_the_traceback_of_a_command_that_fails_has_the_stages_own_line(log: RecordingLogger, kind: str) -> None:
    function = commands.wait if kind == "async" else commands.block
    outcome = await ended(attempt(function, log, job_type="failing"))
    assert isinstance(outcome, Errored)
    assert "ctx.run_command(words(ctx))" in (outcome.traceback or "")
    assert "no running event loop" not in (outcome.traceback or "")


async def test_a_command_that_cannot_start_says_why(log: RecordingLogger, tmp_path: Path) -> None:
    error = await run(log, "sync", "no-such-command")
    assert isinstance(error, FileNotFoundError)
    assert "cannot start the command 'no-such-command': No such file" in str(error)
    error = await run(log, "async", "ls", cwd=tmp_path / "gone")
    assert isinstance(error, FileNotFoundError)
    assert f"cannot start the command 'ls' in the folder '{tmp_path / 'gone'}'" in str(error)
    assert isinstance(await run(log, "sync", tmp_path), PermissionError)
    assert isinstance(await run(log, "sync", "echo", "x" * 10_000_000), OSError)
    assert isinstance(await run(log, "sync", "ls", stdout=tmp_path / "gone" / "output"), FileNotFoundError)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("ls -l", TypeError),
        (b"ls", TypeError),
        ([], TypeError),
        (None, TypeError),
        ({"ls"}, TypeError),
        (["sleep", 5], TypeError),
        (["ls", "\x00"], ValueError),
    ],
    ids=["text", "bytes", "nothing", "None", "set", "number", "NUL"],
)
def test_what_is_not_a_list_of_words_is_refused_at_the_call(words: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="command"):
        subject.Commands(state(), Threads("painting"), None).run(words)


async def test_more_output_than_is_captured_is_an_error_that_says_where_to_put_it(log: RecordingLogger) -> None:
    error = await run(log, "sync", "head", "-c", str(subject.MAX_STDOUT_BYTES + 1), "/dev/zero")
    assert isinstance(error, ValueError)
    assert "more than 16 MiB" in str(error)
    assert "stdout=PATH" in str(error)
    result = await run(log, "sync", "head", "-c", str(subject.MAX_STDOUT_BYTES), "/dev/zero")
    assert len(result.stdout) == subject.MAX_STDOUT_BYTES


async def test_the_lines_of_its_standard_error_are_logged_in_bounds(log: RecordingLogger) -> None:
    script = r"printf 'one\ntwo\r\n10%%\r20%%\rthree\n'; printf '\0\377\n'; head -c 1000000 /dev/zero; printf '\nend'"
    await run(log, "sync", "sh", "-c", f"({script}) >&2")
    entries = log.of("command_stderr")
    texts = [entry["message"] for entry in entries]
    assert texts[:6] == ["one", "two", "10%", "20%", "three", "��"]
    assert texts[7:] == ["end"]
    assert len(texts[6]) == subject.MAX_LINE_BYTES
    assert {(e["job_id"], e["stage"], e["attempt"], e["command"]) for e in entries} == {
        ("some-id", "painting", 1, "sh")
    }


async def test_of_a_flood_of_lines_a_part_is_logged_and_the_rest_counted(log: RecordingLogger) -> None:
    await run(log, "async", "sh", "-c", "yes | head -n 100000 >&2")
    logged = len(log.of("command_stderr"))
    assert subject.MAX_LINES_PER_SECOND <= logged < 50_000
    assert logged + sum(entry["lines"] for entry in log.of("command_stderr_dropped")) == 100_000


async def test_a_command_leaves_no_process_thread_or_pipe(log: RecordingLogger, processes: Processes) -> None:
    await run(log, "async", "true")
    before, threads = psutil.Process().num_fds(), threading.active_count()
    for kind in KINDS:
        path = processes.folder / f"{kind}-x"
        result = await run(log, kind, "sh", "-c", commands.SCRIPTS["quick"], "-", str(path))
        assert result.stdout == b"done\n"
        assert processes.living(processes.pids(kind, "x")) == []
    assert launchers() == []
    assert psutil.Process().num_fds() <= before
    await eventually(lambda: threading.active_count() <= threads + 2)  # the starter of each attempt's Threads


async def test_a_process_that_is_forked_meanwhile_does_not_keep_a_command_from_ending(
    log: RecordingLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, forked = subprocess.Popen._execute_child, []  # type: ignore[attr-defined]

    def fork_first(*args: Any) -> None:
        # As another stage of the same worker may do; the child has copies of all descriptors.
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(0)
        forked.append(pid)
        execute(*args)

    monkeypatch.setattr(subprocess.Popen, "_execute_child", fork_first)
    try:
        result = await run(log, "sync", "sh", "-c", "cat; echo end >&2", input=b"x" * 1_000_000)
        assert result.stdout == b"x" * 1_000_000
        assert result.stderr == b"end\n"
        assert psutil.pid_exists(forked[0])
    finally:
        for pid in forked:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # noqa: ASYNC222  # it was killed


async def test_a_command_runs_beside_more_than_a_thousand_open_files(log: RecordingLogger) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    files: list[int] = []
    try:
        files.extend(os.dup(0) for _ in range(1100))
        assert (await run(log, "sync", "sh", "-c", "sleep 0.1; echo x")).stdout == b"x\n"
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (Attempt.supersede, Superseded()),
        (Attempt.interrupt, Interrupted()),
        (lambda attempt: attempt.fail(ValueError("a child task")), Errored("ValueError: a child task", traceback=None)),
        (None, "time-out"),
    ],
    ids=["cancel", "stop", "failure elsewhere", "time-out"],
)
async def test_the_end_of_the_attempt_is_the_end_of_its_command_and_its_children(
    log: RecordingLogger, processes: Processes, kind: str, end: Callable[[Attempt], None] | None, outcome: Any
) -> None:
    function = commands.wait if kind == "async" else commands.block
    running_attempt = attempt(function, log, timeout=None if end else commands.TIMEOUT_SECONDS)
    running = asyncio.create_task(ended(running_attempt))
    await eventually(lambda: processes.pids("some-id", "painting"))
    if end:
        end(running_attempt)
    result = await running
    if isinstance(outcome, str):
        assert isinstance(result, Errored)
        assert outcome in result.error
    else:
        assert type(result) is type(outcome)
    pids = processes.pids("some-id", "painting")
    assert len(pids) == 3
    await eventually(lambda: not processes.living(pids), what="its processes end")
    await eventually(lambda: running_attempt.goes_on is None, what="its function ends")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_command_that_nobody_waits_for_ends_with_its_attempt(
    log: RecordingLogger, processes: Processes, kind: str
) -> None:
    refused: list[BaseException] = []

    async def leaves_a_task(ctx: Context) -> None:
        task = asyncio.create_task(commands.wait(ctx))
        await eventually(lambda: processes.pids("some-id", "painting"))
        task.add_done_callback(lambda each: refused.append(each.exception() or AssertionError()))

    def in_thread(ctx: Context) -> None:
        for _ in range(2):  # the second one comes too late
            try:
                commands.block(ctx)
            except BaseException as error:
                refused.append(error)

    def leaves_a_thread(ctx: Context) -> None:
        threading.Thread(target=in_thread, args=(ctx,), daemon=True).start()
        while not processes.pids("some-id", "painting"):
            pass

    running_attempt = attempt(leaves_a_task if kind == "async" else leaves_a_thread, log)
    assert await ended(running_attempt) == Finished()
    pids = processes.pids("some-id", "painting")
    await eventually(lambda: not processes.living(pids), what="its processes end")
    await eventually(lambda: len(refused) == (1 if kind == "async" else 2))
    assert {type(error).__name__ for error in refused} == {"StageInterrupted"}


async def test_a_command_that_a_stage_gives_up_ends_while_the_attempt_goes_on(
    log: RecordingLogger, processes: Processes
) -> None:
    pids: list[int] = []

    async def gives_up(ctx: Context) -> None:
        task = asyncio.create_task(commands.wait(ctx))
        await eventually(lambda: processes.pids("some-id", "painting"))
        pids.extend(processes.pids("some-id", "painting"))
        task.cancel()
        await asyncio.wait({task})
        assert processes.living(pids) == []

    assert await ended(attempt(gives_up, log)) == Finished()
    assert len(pids) == 3


async def test_a_command_may_be_run_in_a_thread_or_a_loop_of_the_stage_itself(log: RecordingLogger) -> None:
    results: list[Any] = []

    async def in_a_thread(ctx: Context) -> None:
        results.append(await asyncio.to_thread(ctx.run_command, ["echo", "1"]))

    def in_a_loop(ctx: Context) -> None:
        async def main() -> None:
            results.append(await ctx.run_command(["echo", "2"]))

        asyncio.run(main())

    for function in (in_a_thread, in_a_loop):
        assert await ended(attempt(function, log)) == Finished()
    assert [result.stdout for result in results] == [b"1\n", b"2\n"]


@pytest.mark.parametrize("function", ["block", "wait"])
@pytest.mark.parametrize("end", ["supersede", "time-out"])
async def test_the_same_in_a_process_of_its_own(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, function: str, end: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    code = f"{commands.__name__}:{function}"
    running_attempt = IsolatedAttempt(code, state(), None if end == "supersede" else 3.0, asyncio.Semaphore(1))
    running = asyncio.create_task(ended(running_attempt))
    await eventually(lambda: processes.pids("some-id", "painting"), timeout=40)
    if end == "supersede":
        running_attempt.supersede()
    outcome = await running
    assert outcome == Superseded() if end == "supersede" else "time-out" in outcome.error
    pids = processes.pids("some-id", "painting")
    await eventually(lambda: not processes.living(pids), what="its processes end")


#: A process that runs an attempt, as a worker does. `forks`: beside it, a forked child keeps its descriptors open.
WORKER = """
import asyncio, os, sys, time
from heimdex.attempt_state import AttemptState
from heimdex.binding import BoundFunction
from heimdex_stage_worker.execution.attempt import Attempt
from heimdex_stage_worker.execution.threads import Threads
from tests.support.pipelines import commands

async def main():
    state = AttemptState(
        job_id="some-id", job_type="endless", stage="painting", attempt=1, expected_seconds=1, mock_time_scale=0
    )
    function = BoundFunction(getattr(commands, sys.argv[1]))
    run = asyncio.create_task(Attempt(function, state, None, Threads("painting")).run())
    if sys.argv[2] == "forks":
        while not os.path.exists(os.path.join(os.environ[commands.FOLDER], "some-id-painting.pids")):
            await asyncio.sleep(0.02)
        if os.fork() == 0:
            with open(os.path.join(os.environ[commands.FOLDER], "forked.pids"), "w") as file:
                file.write(str(os.getpid()))
            time.sleep(3600)
    await run

asyncio.run(main())
"""


@pytest.mark.parametrize(("function", "beside"), [("block", "alone"), ("wait", "alone"), ("block", "forks")])
async def test_the_sudden_death_of_the_worker_is_the_end_of_its_commands(
    processes: Processes, function: str, beside: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        WORKER,
        function,
        beside,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
    try:
        await eventually(lambda: processes.pids("some-id", "painting"), timeout=40)
        if beside == "forks":
            await eventually(lambda: (processes.folder / "forked.pids").exists())
        pids = processes.pids("some-id", "painting")
        assert len(processes.living(pids)) == 3
    finally:
        process.kill()
        await process.wait()
    await eventually(lambda: not processes.living(pids), what="its processes end")


async def test_the_sudden_death_of_a_launcher_is_an_error_and_the_end_of_its_command(
    log: RecordingLogger, processes: Processes
) -> None:
    running = asyncio.create_task(ended(attempt(commands.block, log)))
    await eventually(lambda: processes.pids("some-id", "painting"))
    [launcher] = launchers()
    launcher.kill()
    outcome = await running
    assert isinstance(outcome, Errored)
    assert "the launcher of the command 'sh' was killed by SIGKILL" in outcome.error
    pids = processes.pids("some-id", "painting")
    # The child in a session of its own could only be ended by its launcher.
    await eventually(lambda: len(processes.living(pids)) <= 1, what="its process group ends")
