"""Job types for the fault tests. The type of a job determines what its first stage does; the last stage is `resting`.

The first stage is `working`: `killer` kills its worker, `raiser` raises, `steady` takes some time, `gated` waits for
the test, `quick` returns at once, `tired` makes progress and then raises, and raises at once on later attempts. For
`spinner` it is `spinning`, which blocks and computes without interruption. `Behaviours` is the interface for the test.
"""

import asyncio
import os
import signal
import time
from pathlib import Path

from heimdex import Context, Pipeline, Stage

FOLDER = "TEST_DUTIES_FOLDER"
STEADY = "TEST_STEADY_SECONDS"
STAGES = ("working", "spinning", "resting")

_WORKING = Stage("working", expected_seconds=1, code=f"{__name__}:work")
_SPINNING = Stage("spinning", expected_seconds=1, code=f"{__name__}:spin")
_RESTING = Stage("resting", expected_seconds=1, code=f"{__name__}:rest")

PIPELINES = (
    *(
        Pipeline(type=name, stages=(_WORKING, _RESTING), retry_backoff_seconds=(0.1, 0.1, 0.1))
        for name in ("killer", "raiser", "steady", "gated", "quick", "tired")
    ),
    Pipeline(type="spinner", stages=(_SPINNING, _RESTING), retry_backoff_seconds=(0.1,)),
)


class Behaviours:
    """Controls these jobs and reads their attempts. Every service needs `env`: `system.env |= duties.env`."""

    def __init__(self, folder: Path, steady_seconds: float = 1.0) -> None:
        self.folder = folder
        self.steady_seconds = steady_seconds
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def env(self) -> dict[str, str]:
        from tests.support.pipelines import with_pipelines

        return {FOLDER: str(self.folder), STEADY: str(self.steady_seconds), **with_pipelines("behaviours")}

    def open_gate(self) -> None:
        """Let every `gated` job continue."""
        (self.folder / "open").touch()

    def close_gate(self) -> None:
        (self.folder / "open").unlink(missing_ok=True)

    def runs(self, job_id: str | None = None, stage: str = "working") -> list[tuple[str, int, int]]:
        """Return every attempt that has started at this stage as (job id, attempt, pid), in order."""
        path = self.folder / stage
        lines = path.read_text().splitlines() if path.exists() else []
        attempts = [(words[0], int(words[1]), int(words[2])) for words in map(str.split, lines)]
        return [attempt for attempt in attempts if job_id in (None, attempt[0])]


def _begin(ctx: Context) -> None:
    # With O_APPEND, the lines of several processes do not mix.
    with (Path(os.environ[FOLDER]) / ctx.stage).open("a") as runs:
        runs.write(f"{ctx.job_id} {ctx.attempt} {os.getpid()}\n")


async def _pass(ctx: Context, seconds: float) -> None:
    start = time.monotonic()
    while (spent := time.monotonic() - start) < seconds:
        await asyncio.sleep(0.05)
        ctx.report(spent / seconds)


async def work(ctx: Context) -> None:
    _begin(ctx)
    match ctx.job_type:
        case "killer":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raiser":
            raise ValueError("this job always raises")
        case "steady":
            await _pass(ctx, float(os.environ[STEADY]))
        case "tired":
            if ctx.attempt == 1:
                for percent in range(0, 85, 5):
                    ctx.report(percent / 100)
                    await asyncio.sleep(0.1)
            raise ValueError("this job is tired")
        case "gated":
            while not (Path(os.environ[FOLDER]) / "open").exists():  # noqa: ASYNC110  # the test opens it
                await asyncio.sleep(0.02)


def spin(ctx: Context) -> None:
    """Hold the interpreter lock as much as pure Python can, without reporting progress."""
    _begin(ctx)
    end = time.monotonic() + float(os.environ[STEADY])
    while time.monotonic() < end:
        sum(range(2000))


async def rest(ctx: Context) -> None:
    _begin(ctx)
