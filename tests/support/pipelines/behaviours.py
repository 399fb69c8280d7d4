"""Job types for the fault tests. What a job does at `working` follows from its type; `resting` ends it.

`killer` kills its worker, `raiser` raises, `steady` takes a while, `gated` waits for the test, `quick` returns,
`tired` comes far and raises, and at once when it is tried again; `spinner` computes without a pause at `spinning`,
which blocks. `Duties` is the test's side.
"""

import asyncio
import os
import signal
import time
from pathlib import Path

from heimdex_contracts.pipelines import Pipeline, Stage
from heimdex_stage_worker.context import StageContext

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


class Duties:
    """`env` goes to every service: `system.env |= duties.env`."""

    def __init__(self, folder: Path, steady_seconds: float = 1.0) -> None:
        self.folder = folder
        self.steady_seconds = steady_seconds
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def env(self) -> dict[str, str]:
        from tests.support.pipelines import with_pipelines

        return {FOLDER: str(self.folder), STEADY: str(self.steady_seconds), **with_pipelines("behaviours")}

    def open_gate(self) -> None:
        """Let every `gated` job go on."""
        (self.folder / "open").touch()

    def close_gate(self) -> None:
        (self.folder / "open").unlink(missing_ok=True)

    def runs(self, job_id: str | None = None, stage: str = "working") -> list[tuple[str, int, int]]:
        """Every attempt at the stage that began: (job id, attempt, pid), in order."""
        path = self.folder / stage
        lines = path.read_text().splitlines() if path.exists() else []
        found = [(words[0], int(words[1]), int(words[2])) for words in map(str.split, lines)]
        return [run for run in found if job_id in (None, run[0])]


def _begin(ctx: StageContext) -> None:
    # O_APPEND: lines of several processes do not mix.
    with (Path(os.environ[FOLDER]) / ctx.stage).open("a") as runs:
        runs.write(f"{ctx.job_id} {ctx.attempt} {os.getpid()}\n")


async def _pass(ctx: StageContext, seconds: float) -> None:
    start = time.monotonic()
    while (spent := time.monotonic() - start) < seconds:
        await asyncio.sleep(0.05)
        ctx.report(spent / seconds)


async def work(ctx: StageContext) -> None:
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


def spin(ctx: StageContext) -> None:
    """Holds the interpreter as hard as pure Python can, and never says how far it is."""
    _begin(ctx)
    end = time.monotonic() + float(os.environ[STEADY])
    while time.monotonic() < end:
        sum(range(2000))


async def rest(ctx: StageContext) -> None:
    _begin(ctx)
