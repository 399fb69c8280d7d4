"""Runs a stage's function once in a process of its own, for a job that is suspected of killing its worker.

A job whose attempts kill their worker also costs the jobs beside it their attempts. From its third attempt on, or in
the second of two (see `isolation_policy`), it runs in a process of its own, where it can kill only itself. The jobs
that were lost with it are suspected too, but finish in processes of their own.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Final

import msgspec

from heimdex.attempt_state import AttemptState
from heimdex_contracts.messages import NOTHING, StageRun
from heimdex_contracts.pipelines import MAX_SECONDS
from heimdex_contracts.runtime import logs
from heimdex_contracts.settlement import Errored, Finished, Interrupted, Outcome, Superseded

#: The maximum number of such processes at a time: each one is an interpreter. Further attempts wait; their leases are
#: renewed.
MAX_AT_ONCE: Final = max(2, os.cpu_count() or 1)
#: The time for the start of the interpreter and the stage's imports, for a stage with a time-out. The time-out itself
#: counts from the call.
START_SECONDS: Final = 60.0
#: The process ends its function at the time-out itself, because it can see where the function is. A process that does
#: not is killed this long after.
OVERDUE_SECONDS: Final = 2.0
#: The maximum capacity of a pipe (Linux: 64 KiB by default, 1 MiB at most).
PIPE_BYTES: Final = 1 << 20
#: The folder in which the worker was started: a relative PYTHONPATH counts from it. A stage may change the current one.
START_FOLDER: Final = os.getcwd()


class Work(msgspec.Struct, frozen=True, omit_defaults=True):
    """The process's input: one line of JSON on its standard input.

    modules: those of the pipelines, from which the process reads what the function takes and returns; empty where it
    takes the context only. params, finished: as in the job's messages.
    """

    code: str
    job_id: str
    job_type: str
    stage: str
    attempt: int
    expected_seconds: float
    mock_time_scale: float
    timeout_seconds: float | None = None
    modules: tuple[str, ...] = ()
    params: msgspec.Raw = NOTHING
    finished: tuple[StageRun, ...] = ()


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """A report of the process, as a line of JSON.

    began: the function is being called. fraction: the stage's progress, 0 to 1. ended: the function has ended; the
    other fields are its outcome, as in Finished and Errored.
    """

    began: bool = False
    fraction: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    ended: bool = False
    error: str | None = None
    permanent: bool = False
    traceback: str | None = None
    retry_after_seconds: Annotated[float, msgspec.Meta(ge=0, le=MAX_SECONDS)] | None = None
    output: msgspec.Raw = NOTHING


_report: Final = msgspec.json.Decoder(Report)


class Reports:
    """The reading end of the pipe on which the process reports. It calls `on_report` with each report."""

    def __init__(self, fd: int, on_report: Callable[[Report], None]) -> None:
        self._fd: int | None = fd
        self._on_report = on_report
        self._rest = b""
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self.read)

    def read(self) -> None:
        """Read the reports in the pipe. After the process has ended, these are all that remain."""
        if self._fd is None:
            return
        try:
            data = os.read(self._fd, PIPE_BYTES)
        except BlockingIOError:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            for line in lines:
                self._on_report(_report.decode(line))
        except msgspec.MsgspecError:
            data = b""  # malformed input: close the pipe
            self._on_report(Report())
        if not data or len(self._rest) > PIPE_BYTES:
            self.close()

    def close(self) -> None:
        """Close the pipe and stop reading."""
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None


class IsolatedAttempt:
    """Like `attempt.Attempt`, but in a process of its own. `slots` limits the number of such processes.

    modules: as in Work.
    """

    def __init__(
        self,
        code: str,
        state: AttemptState,
        timeout_seconds: float | None,
        slots: asyncio.Semaphore,
        modules: tuple[str, ...] = (),
    ) -> None:
        self._modules = modules
        self._code = code
        self._state = state
        self._timeout = timeout_seconds
        self._slots = slots
        self._ended_by: Outcome | None = None
        self._waiting: asyncio.Task[bool] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._last = Report()
        self._timer: asyncio.TimerHandle | None = None

    def interrupt(self) -> None:
        """End the attempt because the worker is stopping. Its outcome is Interrupted, unless it has already ended."""
        self._end(Interrupted())

    def supersede(self) -> None:
        """End the attempt because the job was canceled. Its outcome is Superseded, unless it has already ended."""
        self._end(Superseded())

    async def run(self) -> Outcome:
        """Run the attempt and return its outcome.

        If the process ends without a result, the outcome is an error with the words "worker lost".
        """
        if self._ended_by is not None:
            return self._ended_by
        self._waiting = asyncio.create_task(self._slots.acquire())
        await asyncio.wait({self._waiting})
        if self._waiting.cancelled():
            return self._ended_by or Interrupted()
        try:
            return self._ended_by or await self._run()
        finally:
            self._slots.release()
            if self._timer:
                self._timer.cancel()

    async def _run(self) -> Outcome:
        reading, writing = os.pipe()
        log_arguments, log_fds = logs.for_child()
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "heimdex_stage_worker.execution.subprocess_main",
                str(writing),
                *log_arguments,
                stdin=asyncio.subprocess.PIPE,
                pass_fds=(writing, *log_fds),
                cwd=START_FOLDER,
            )
        except OSError as error:
            os.close(reading)
            return Errored(f"cannot start a process for this attempt: {error}")
        finally:
            os.close(writing)
        reports = Reports(reading, self._on_report)
        try:
            if self._ended_by is not None:
                self._kill()
            elif self._timeout is not None:
                self._limit(START_SECONDS + self._timeout)
            assert process.stdin is not None  # noqa: S101  # it is a pipe, see above
            with contextlib.suppress(ConnectionError):
                # A line: a process that a stage has forked may keep this pipe open. JSON that came with the job may
                # contain line feeds, though only between its tokens.
                process.stdin.write(msgspec.json.encode(self._work()).replace(b"\n", b" ") + b"\n")
                process.stdin.close()
            # Do not wait for the end of the pipe: a child of the stage that is still alive may keep it open.
            code = await process.wait()
            reports.read()
        finally:
            self._kill()
            self._process = None
            reports.close()
        if self._ended_by is not None:
            return self._ended_by
        if not self._last.ended:
            return Errored(
                f"worker lost: the process of this attempt ended without a result ({_cause(code)})", vanished=True
            )
        last = self._last
        if last.error is None:
            return Finished(last.output or NOTHING)
        return Errored(
            last.error, last.permanent, traceback=last.traceback, retry_after_seconds=last.retry_after_seconds
        )

    def _on_report(self, report: Report) -> None:
        self._last = report
        if report.began and self._timeout is not None:
            self._limit(self._timeout + OVERDUE_SECONDS)
        if report.fraction is not None:
            self._state.report(report.fraction)

    def _limit(self, seconds: float) -> None:
        if self._timer:
            self._timer.cancel()
        timed_out = Errored(f"the stage took longer than its time-out of {self._timeout or 0:g} s")
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end, timed_out)

    def _work(self) -> Work:
        state = self._state
        return Work(
            code=self._code,
            job_id=state.job_id,
            job_type=state.job_type,
            stage=state.stage,
            attempt=state.attempt,
            expected_seconds=state.expected_seconds,
            mock_time_scale=state.mock_time_scale,
            timeout_seconds=self._timeout,
            modules=self._modules,
            params=state.params,
            finished=state.finished,
        )

    def _end(self, outcome: Outcome) -> None:
        if self._ended_by is None and not self._last.ended:
            self._ended_by = outcome
            self._state.interrupt()
            if self._waiting:
                self._waiting.cancel()
            self._kill()

    def _kill(self) -> None:
        """Send SIGKILL to the process and its children, even if the process itself has ended."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()  # it may not yet lead a process group


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def encode_report(report: Report) -> bytes:
    """Encode a report as one line of JSON."""
    return msgspec.json.encode(report) + b"\n"


def decode_work(line: bytes) -> Work:
    """Decode the process's input. Raises msgspec.MsgspecError when it is malformed."""
    return msgspec.json.decode(line, type=Work)
