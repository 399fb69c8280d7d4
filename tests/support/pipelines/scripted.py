"""A job type whose stages follow a script of the test: `Script` writes it, the stages read it.

`scripted` has an async stage `preparing`, a blocking stage `grinding`, and an async stage `closing` with a timeout of
half a second.
"""

import asyncio
import json
import os
import signal
import time
from pathlib import Path

from heimdex import Context, PermanentError, Pipeline, Stage

VARIABLE = "TEST_SCRIPT_FOLDER"
STAGES = ("preparing", "grinding", "closing")

PIPELINES = (
    Pipeline(
        type="scripted",
        stages=(
            Stage("preparing", expected_seconds=1, code=f"{__name__}:prepare"),
            Stage("grinding", expected_seconds=2, code=f"{__name__}:grind"),
            Stage("closing", expected_seconds=1, code=f"{__name__}:close", timeout_seconds=0.5),
        ),
        retry_backoff_seconds=(0.1, 0.1),
    ),
)


class Script:
    """The interface for the test. The workers need `env`.

    `write` sets the behaviours of a stage, one per attempt; the last one applies to all further attempts. A behaviour
    is "ok", "raise", "permanent" (raise a PermanentError), "kill" (SIGKILL to the worker), "hang" (for ever), "deaf"
    (for ever, ignoring every cancellation), "gate" (until the test opens the gate) or "busy" (block for a minute
    without progress).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def env(self) -> dict[str, str]:
        from tests.support.pipelines import with_pipelines

        return {VARIABLE: str(self.folder), "HEIMDEX_RETRY_BACKOFF_SECONDS": "", **with_pipelines("scripted")}

    def write(self, stage: str, *behaviours: str) -> None:
        (self.folder / f"{stage}.json").write_text(json.dumps(behaviours))

    def clear(self) -> None:
        """Restore the initial state: every stage succeeds at once, and the gate is closed."""
        for name in (*(f"{stage}.json" for stage in STAGES), "open"):
            (self.folder / name).unlink(missing_ok=True)

    def open_gate(self) -> None:
        (self.folder / "open").touch()

    def runs(self, stage: str | None = None, job_id: str | None = None) -> list[tuple[str, str, int, int]]:
        """Return every attempt that has started as (stage, job id, attempt, pid), in order."""
        path = self.folder / "runs"
        lines = path.read_text().splitlines() if path.exists() else []
        attempts = [(words[0], words[1], int(words[2]), int(words[3])) for words in map(str.split, lines)]
        return [each for each in attempts if stage in (None, each[0]) and job_id in (None, each[1])]


def _begin(ctx: Context) -> str:
    folder = Path(os.environ[VARIABLE])
    with (folder / "runs").open("a") as runs:
        runs.write(f"{ctx.stage} {ctx.job_id} {ctx.attempt} {os.getpid()}\n")
    path = folder / f"{ctx.stage}.json"
    behaviours = json.loads(path.read_text()) if path.exists() else ["ok"]
    behaviour = behaviours[min(ctx.attempt, len(behaviours)) - 1]
    match behaviour:
        case "raise":
            raise ValueError(f"the script says so, attempt {ctx.attempt}")
        case "permanent":
            raise PermanentError("the script says for good")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
    return str(behaviour)


def _open() -> bool:
    return (Path(os.environ[VARIABLE]) / "open").exists()


async def prepare(ctx: Context) -> None:
    behaviour = _begin(ctx)
    while behaviour == "hang" or (behaviour == "gate" and not _open()):  # noqa: ASYNC110  # another process opens it
        await asyncio.sleep(0.02)
    while behaviour == "deaf":
        try:
            await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            continue


def grind(ctx: Context) -> None:
    behaviour = _begin(ctx)
    while behaviour == "hang" or (behaviour == "gate" and not _open()):
        time.sleep(0.02)
        ctx.report(0.5)
    if behaviour == "busy":
        time.sleep(60)


async def close(ctx: Context) -> None:
    await prepare(ctx)
