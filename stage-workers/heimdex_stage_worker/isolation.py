"""Runs a stage's function once in a process of its own: for a job that is suspected of killing its worker.

A job whose attempts vanish without a word takes everything beside it down with its worker. From its third attempt (or
its last) it runs alone, so that it can only end itself, and its neighbours, suspected with it, run to their end.
"""

import asyncio
import os
import signal
import sys
from typing import Annotated, Any, Final

import msgspec

from heimdex_contracts.delivery import Errored, Finished, Interrupted, Outcome, Overtaken
from heimdex_stage_worker.context import StageContext

#: Each is an interpreter of its own; the others wait, their leases kept.
MOST_AT_ONCE: Final = max(2, os.cpu_count() or 1)


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
    """What it tells, a line of JSON each: how far it is, or how it ended."""

    fraction: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    ended: bool = False
    error: str | None = None
    permanent: bool = False


_report: Final = msgspec.json.Decoder(Report)


class IsolatedAttempt:
    """As `attempt.Attempt`, but in a process of its own."""

    def __init__(self, code: str, ctx: StageContext, timeout_seconds: float | None, slots: asyncio.Semaphore) -> None:
        self._code = code
        self._ctx = ctx
        self._timeout = timeout_seconds
        self._slots = slots
        self._ended_by: Outcome | None = None
        self._process: asyncio.subprocess.Process | None = None

    def interrupt(self) -> None:
        """The worker is stopping: the outcome is Interrupted unless the function has ended already."""
        self._end(Interrupted())

    def overtake(self) -> None:
        """The job goes on without this attempt: the outcome is Overtaken."""
        self._end(Overtaken())

    async def run(self) -> Outcome:
        """Run to the end. A process that ends without a word is an error that says "worker lost"."""
        async with self._slots:
            if self._ended_by is not None:
                return self._ended_by
            try:
                async with asyncio.timeout(self._timeout):
                    return await self._run()
            except TimeoutError:
                self._end(Errored(f"the stage took longer than its time-out of {self._timeout:g} s"))
                return self._ended_by or Interrupted()
            finally:
                self._kill()

    async def _run(self) -> Outcome:
        reading, writing = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "heimdex_stage_worker.isolated",
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
        if self._ended_by is not None:
            os.close(reading)
            return self._ended_by
        last = Report()
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", buffering=0)
        )
        try:
            assert self._process.stdin is not None  # noqa: S101  # asked for above
            self._process.stdin.write(msgspec.json.encode(self._work()) + b"\n")
            self._process.stdin.close()
            async for line in reader:
                last = _report.decode(line)
                if last.fraction is not None and not self._ctx.interrupted:
                    self._ctx.report(last.fraction)
        except (ConnectionError, msgspec.MsgspecError):
            last = Report()
        finally:
            transport.close()
        code = await self._process.wait()
        if self._ended_by is not None:
            return self._ended_by
        if not last.ended:
            return Errored(
                f"worker lost: the process that ran this attempt ended without a word ({_how(code)})", vanished=True
            )
        return Finished() if last.error is None else Errored(last.error, last.permanent)

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
        if self._ended_by is None:
            self._ended_by = outcome
            self._ctx.interrupt()
            self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()


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
