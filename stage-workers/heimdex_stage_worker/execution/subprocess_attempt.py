"""Runs a stage's function once in a process of its own: for a job that is suspected of killing its worker.

A job whose attempts end their worker takes down everything that runs beside it. From its third attempt, or in its last
of two (see `isolation_policy`), it runs alone: it can only end itself, and its neighbours, suspected with it, finish.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec

from heimdex_contracts.settlement import Errored, Finished, Interrupted, Outcome, Overtaken
from heimdex_stage_worker.context import StageContext

#: Each is an interpreter of its own; the others wait, their leases kept.
MAX_AT_ONCE: Final = max(2, os.cpu_count() or 1)
#: How long the interpreter and the stage's imports may take where a time-out is declared, which counts from the call.
START_SECONDS: Final = 60.0
#: No pipe holds more (Linux: 64 KiB, and at most this).
PIPE_BYTES: Final = 1 << 20


class Work(msgspec.Struct, frozen=True):
    """What the process is told: on its standard input, as one line of JSON."""

    code: str
    job_id: str
    job_type: str
    stage: str
    attempt: int
    expected_seconds: float
    mock_time_scale: float


class Report(msgspec.Struct, frozen=True):
    """What it tells, a line of JSON each: that it calls the function, how far it is, how it ended."""

    began: bool = False
    fraction: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    ended: bool = False
    error: str | None = None
    permanent: bool = False


_report: Final = msgspec.json.Decoder(Report)


class Reports:
    """The reading end of the pipe that the process tells on; each report goes to `on_report` as it comes."""

    def __init__(self, fd: int, on_report: Callable[[Report], None]) -> None:
        self._fd: int | None = fd
        self._on_report = on_report
        self._rest = b""
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self.read)

    def read(self) -> None:
        """Take what is in the pipe by now: of a process that has ended, all that it said."""
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
            data = b""  # what says rubbish is not listened to any more
            self._on_report(Report())
        if not data or len(self._rest) > PIPE_BYTES:
            self.close()

    def close(self) -> None:
        """Hear nothing more."""
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None


class IsolatedAttempt:
    """As `attempt.Attempt`, but in a process of its own."""

    def __init__(self, code: str, ctx: StageContext, timeout_seconds: float | None, slots: asyncio.Semaphore) -> None:
        self._code = code
        self._ctx = ctx
        self._timeout = timeout_seconds
        self._slots = slots
        self._ended_by: Outcome | None = None
        self._waiting: asyncio.Task[bool] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._last = Report()
        self._timer: asyncio.TimerHandle | None = None

    def interrupt(self) -> None:
        """The worker is stopping: the outcome is Interrupted unless the function has ended already."""
        self._end(Interrupted())

    def overtake(self) -> None:
        """The job goes on without this attempt: the outcome is Overtaken."""
        self._end(Overtaken())

    async def run(self) -> Outcome:
        """Run to the end. A process that ends without a word is an error that says "worker lost"."""
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
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "heimdex_stage_worker.execution.subprocess_main",
                str(writing),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=(writing,),
            )
        except OSError as error:
            os.close(reading)
            return Errored(f"the process for this attempt could not be started: {error}")
        finally:
            os.close(writing)
        reports = Reports(reading, self._on_report)
        try:
            if self._ended_by is not None:
                self._kill()
            elif self._timeout is not None:
                self._limit(START_SECONDS + self._timeout)
            assert process.stdin is not None  # noqa: S101  # asked for above
            with contextlib.suppress(ConnectionError):
                process.stdin.write(msgspec.json.encode(self._work()) + b"\n")
                process.stdin.close()
            # Not for the end of the pipe: a child that the stage left behind may hold it for as long as it lives.
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
                f"worker lost: the process that ran this attempt ended without a word ({_how(code)})", vanished=True
            )
        return Finished() if self._last.error is None else Errored(self._last.error, self._last.permanent)

    def _on_report(self, report: Report) -> None:
        self._last = report
        if report.began and self._timeout is not None:
            self._limit(self._timeout)
        if report.fraction is not None and not self._ctx.interrupted:
            self._ctx.report(report.fraction)

    def _limit(self, seconds: float) -> None:
        if self._timer:
            self._timer.cancel()
        late = Errored(f"the stage took longer than its time-out of {self._timeout or 0:g} s")
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end, late)

    def _work(self) -> Work:
        ctx = self._ctx
        return Work(
            code=self._code,
            job_id=ctx.job_id,
            job_type=ctx.job_type,
            stage=ctx.stage,
            attempt=ctx.attempt,
            expected_seconds=ctx.expected_seconds,
            mock_time_scale=ctx.mock_time_scale,
        )

    def _end(self, outcome: Outcome) -> None:
        if self._ended_by is None and not self._last.ended:
            self._ended_by = outcome
            self._ctx.interrupt()
            if self._waiting:
                self._waiting.cancel()
            self._kill()

    def _kill(self) -> None:
        """SIGKILL to the process and to what it started, also when it has ended itself."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()  # it may not have come to lead its group yet


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def encode_report(report: Report) -> bytes:
    """As one line."""
    return msgspec.json.encode(report) + b"\n"


def decode_work(line: bytes) -> Any:
    """Raises msgspec.MsgspecError."""
    return msgspec.json.decode(line, type=Work)
