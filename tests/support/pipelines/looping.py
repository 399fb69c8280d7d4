"""Job types with one async stage, `looping`, which shares its worker's event loop with its neighbours.

When it runs first, `blocker` blocks the loop for TEST_BLOCK_SECONDS, `task_blocker` does so in a child task, and
`computing` computes for as long.
`late_blocker` blocks it in a callback, when its attempt has completed. `neighbour` waits until the test opens the gate.
`Looping` is the interface for the test.
"""

import asyncio
import os
import time
from pathlib import Path

from heimdex import Context, Pipeline, Stage

FOLDER = "TEST_LOOPING_FOLDER"
SECONDS = "TEST_BLOCK_SECONDS"
STAGE = "looping"

PIPELINES = tuple(
    Pipeline(
        type=kind,
        stages=(Stage(STAGE, expected_seconds=1, code=f"{__name__}:looping"),),
        retry_backoff_seconds=(0.1, 0.1),
    )
    for kind in ("blocker", "task_blocker", "late_blocker", "computing", "neighbour")
)


class Looping:
    """Controls these jobs and reads their attempts. Every service needs `env`: `system.env |= looping.env`."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self.folder = folder
        self.seconds = seconds
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def env(self) -> dict[str, str]:
        from tests.support.pipelines import with_pipelines

        folder, seconds = str(self.folder), str(self.seconds)
        return {FOLDER: folder, SECONDS: seconds, "HEIMDEX_RETRY_BACKOFF_SECONDS": "", **with_pipelines("looping")}

    def open_gate(self) -> None:
        """Let every waiting attempt return."""
        (self.folder / "open").touch()

    def runs(self) -> list[tuple[str, int, int]]:
        """Return every attempt that has started as (job id, attempt, pid), in order."""
        path = self.folder / "runs"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(words[0], int(words[1]), int(words[2])) for words in map(str.split, lines)]


def _begin(ctx: Context) -> bool:
    """Record the attempt. Returns whether it is the first one of its job."""
    with (Path(os.environ[FOLDER]) / "runs").open("a+") as runs:
        runs.seek(0)
        is_first = ctx.job_id not in runs.read()
        runs.write(f"{ctx.job_id} {ctx.attempt} {os.getpid()}\n")
    return is_first


def _block() -> None:
    time.sleep(float(os.environ[SECONDS]))


async def _block_in_task() -> None:
    _block()


async def looping(ctx: Context) -> None:
    match ctx.job_type if _begin(ctx) else "":
        case "blocker":
            _block()
        case "task_blocker":
            await asyncio.create_task(_block_in_task())
        case "late_blocker":
            asyncio.get_running_loop().call_later(0.5, _block)
        case "computing":
            end = time.monotonic() + float(os.environ[SECONDS])
            while time.monotonic() < end:
                sum(range(2000))
    if ctx.job_type == "neighbour":
        while not (Path(os.environ[FOLDER]) / "open").exists():  # noqa: ASYNC110  # the test opens it
            await asyncio.sleep(0.05)
