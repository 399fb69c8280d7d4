"""The argument of a stage's function: the job's data, a method to report progress, and the interruption flag."""

import math
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, SupportsFloat

from heimdex.attempt_state import AttemptState
from heimdex.numbers import number_of

#: The characters of a command's standard error in the text of its error.
_MAX_TAIL_LENGTH: Final = 1000


class StageInterrupted(BaseException):
    """`report` raises this when the attempt is over: the job was canceled, timed out or must be handed back.

    It is a BaseException, so that a stage's own `except Exception` does not catch it.
    """


class CommandFailed(subprocess.CalledProcessError):
    """A command of `run_command` ended with an exit code other than 0, or was killed.

    returncode: the exit code, or the negative number of the signal. stdout: its output; None if it went to a file.
    stderr: the last lines of its standard error.
    """

    def __init__(self, completed: "subprocess.CompletedProcess[bytes]", text: str) -> None:
        super().__init__(completed.returncode, completed.args, completed.stdout, completed.stderr)
        self._text = text

    def __str__(self) -> str:
        tail = (self.stderr or b"").decode(errors="replace").strip()[-_MAX_TAIL_LENGTH:]
        return f"{self._text}; its last lines were: {tail}" if tail else self._text


class Context:
    """One attempt at one stage of one job, as the stage's function sees it. Safe to use from any thread.

    It is read-only: an assignment raises AttributeError. A copy in another process has the data, and reports nothing.
    """

    __slots__ = ("_run_command", "_state")
    _state: AttemptState
    _run_command: Callable[..., Any] | None

    def __init__(self, state: AttemptState, run_command: Callable[..., Any] | None = None) -> None:
        object.__setattr__(self, "_state", state)
        object.__setattr__(self, "_run_command", run_command)

    @property
    def job_id(self) -> str:
        """The id of the job: a UUID."""
        return self._state.job_id

    @property
    def job_type(self) -> str:
        """The type of the job: the name of its pipeline."""
        return self._state.job_type

    @property
    def stage(self) -> str:
        """The name of the stage."""
        return self._state.stage

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self._state.attempt

    @property
    def expected_seconds(self) -> float:
        """The expected duration that the pipeline declares, in seconds."""
        return self._state.expected_seconds

    @property
    def mock_time_scale(self) -> float:
        """A factor for the durations of the mock stages; real stages ignore it."""
        return self._state.mock_time_scale

    @property
    def fail_at_stage(self) -> str | None:
        """The stage at which the mock pipeline must fail; real stages ignore it."""
        return self._state.fail_at_stage

    @property
    def fraction(self) -> float:
        """The fraction of this stage that was reported as done, 0 to 1."""
        return self._state.fraction

    @property
    def interrupted(self) -> bool:
        """Whether the attempt is over. A blocking stage that does not call `report` may check this."""
        return self._state.interrupted

    def report(self, fraction: SupportsFloat) -> None:
        """Report the fraction of this stage that is done, 0 to 1. A call is cheap, so a stage may report often.

        Less than 0 counts as 0, more than 1 as 1; the fraction never decreases. Raises StageInterrupted when the
        attempt is over; the stage must not catch it. Raises TypeError for what is not a number, ValueError for nan
        and the infinities.
        """
        if self._state.interrupted:
            raise StageInterrupted(f"the attempt {self._state.attempt} of {self._state.stage} is over")
        self._state.report(_finite(fraction))

    def run_command(
        self,
        command: Sequence[str | bytes | os.PathLike[str]],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        input: bytes | None = None,
        check: bool = True,
        stdout: str | os.PathLike[str] | None = None,
    ) -> Any:
        """Run a command that ends with the attempt, and return its `subprocess.CompletedProcess`.

        A plain call in a blocking function; in an async one, and wherever an event loop runs, it must be awaited.

        command: the words of the command; no shell is used. cwd: its folder. env: its whole environment. input: its
        standard input, empty by default. stdout: the path of a file for its standard output, which replaces the file;
        by default, up to 16 MiB are captured. Each line of its standard error is logged. The result has the captured
        output as bytes in `stdout`, and the last lines of its standard error in `stderr`.

        When the command ends, every process that it started is ended too. When the attempt ends, also because its
        worker is killed, the command gets SIGTERM and, 0.5 s later, SIGKILL with every process that it started.

        Raises CommandFailed for an exit code other than 0, if `check`; OSError if the command cannot be started;
        ValueError for more output than is captured; StageInterrupted when the attempt is over, which the stage must
        not catch.
        """
        if self._run_command is None:
            raise RuntimeError("ctx.run_command works in the process of the attempt, not in a copy of the context")
        return self._run_command(command, cwd=cwd, env=env, input=input, check=check, stdout=stdout)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(
            f"ctx.{name} cannot be set: the context is read-only; keep your own values in variables of your function"
        )

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"ctx.{name} cannot be deleted: the context is read-only")

    def __reduce__(self) -> tuple[Any, ...]:
        return Context, (self._state,)


def _finite(fraction: SupportsFloat) -> float:
    value = number_of(fraction)
    if value is None:
        raise TypeError(f"ctx.report takes a number from 0 to 1, not a value of the type {type(fraction).__name__}")
    if not math.isfinite(value):
        raise ValueError("ctx.report takes a number from 0 to 1, not nan or an infinity")
    return value
