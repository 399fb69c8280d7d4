"""Job types with one stage, `blocking`, which is a plain function: it runs in a thread of its worker.

`odd` raises StopIteration, which a future does not accept. `stuck` has a timeout and ignores it. `patient` has no
timeout, and reports progress, so that it notices an interruption. Both wait until the test opens the gate. `moved`
changes the folder of its worker. `Blocking` is the interface for the test.
"""

import os
import time
from pathlib import Path

from heimdex import Context, Pipeline, Stage

FOLDER = "TEST_BLOCKING_FOLDER"
STAGE = "blocking"
TIMEOUT_SECONDS = 0.5

_STAGE = Stage(STAGE, expected_seconds=1, code=f"{__name__}:block")
_LIMITED = Stage(STAGE, expected_seconds=1, code=f"{__name__}:block", timeout_seconds=TIMEOUT_SECONDS)

PIPELINES = (
    Pipeline(type="odd", stages=(_STAGE,), retry_backoff_seconds=(0.1,)),
    Pipeline(type="stuck", stages=(_LIMITED,), retry_backoff_seconds=()),
    Pipeline(type="patient", stages=(_STAGE,), retry_backoff_seconds=()),
    Pipeline(type="moved", stages=(_STAGE,), retry_backoff_seconds=()),
)


class Blocking:
    """Controls these jobs and reads their attempts. Every service needs `env`: `system.env |= blocking.env`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def env(self) -> dict[str, str]:
        from tests.support.pipelines import with_pipelines

        return {FOLDER: str(self.folder), "HEIMDEX_RETRY_BACKOFF_SECONDS": "", **with_pipelines("blocking")}

    def open_gate(self) -> None:
        """Let every waiting attempt return."""
        (self.folder / "open").touch()

    def runs(self) -> list[tuple[str, int, int]]:
        """Return every attempt that has started as (job id, attempt, pid), in order."""
        path = self.folder / "runs"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(words[0], int(words[1]), int(words[2])) for words in map(str.split, lines)]


def block(ctx: Context) -> None:
    folder = Path(os.environ[FOLDER])
    with (folder / "runs").open("a") as runs:
        runs.write(f"{ctx.job_id} {ctx.attempt} {os.getpid()}\n")
    if ctx.job_type == "odd":
        next(iter(()))
    if ctx.job_type == "moved":
        os.chdir("/")
        return
    while not (folder / "open").exists():
        time.sleep(0.05)
        if ctx.job_type == "patient":
            ctx.report(0.5)
