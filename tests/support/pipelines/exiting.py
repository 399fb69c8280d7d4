"""Job types with one async stage, `exiting`, whose type says how its code tries to end the worker.

In a child task: `task` forgets it, `awaited` awaits it, `interrupt` raises KeyboardInterrupt. In a callback, which no
attempt can be found for: `call_soon`, `call_later`, `done_callback`, `loop_stop`. `thread` waits for an hour in
`asyncio.to_thread`. `neighbour` waits until the test opens the gate. `Exiting` is the interface for the test.
"""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from heimdex import Context, Pipeline, Stage

FOLDER = "TEST_EXITING_FOLDER"
STAGE = "exiting"
IN_TASKS = ("task", "awaited", "interrupt")
IN_CALLBACKS = ("call_soon", "call_later", "done_callback", "loop_stop")

_STAGE = Stage(STAGE, expected_seconds=1, code=f"{__name__}:exiting")
PIPELINES = tuple(
    Pipeline(type=kind, stages=(_STAGE,), retry_backoff_seconds=())
    for kind in (*IN_TASKS, *IN_CALLBACKS, "thread", "neighbour")
)


class Exiting:
    """Controls these jobs and reads their attempts. Every service needs `env`: `system.env |= exiting.env`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def env(self) -> dict[str, str]:
        from tests.support.pipelines import with_pipelines

        return {FOLDER: str(self.folder), "HEIMDEX_RETRY_BACKOFF_SECONDS": "", **with_pipelines("exiting")}

    def open_gate(self) -> None:
        """Let every waiting attempt return."""
        (self.folder / "open").touch()

    def runs(self) -> list[tuple[str, int]]:
        """Return every attempt that has started as (job id, attempt), in order."""
        path = self.folder / "runs"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(words[0], int(words[1])) for words in map(str.split, lines)]


def _exit(*_: object) -> NoReturn:
    sys.exit(0)


async def _exit_in_task() -> NoReturn:
    sys.exit(0)


async def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


async def exiting(ctx: Context) -> None:
    folder = Path(os.environ[FOLDER])
    with (folder / "runs").open("a") as runs:
        runs.write(f"{ctx.job_id} {ctx.attempt}\n")
    loop = asyncio.get_running_loop()
    tasks = []
    match ctx.job_type:
        case "task":
            tasks.append(loop.create_task(_exit_in_task()))
        case "awaited":
            await loop.create_task(_exit_in_task())
        case "interrupt":
            tasks.append(loop.create_task(_interrupt()))
        case "call_soon":
            loop.call_soon(_exit)
        case "call_later":
            loop.call_later(0.01, _exit)
        case "done_callback":
            tasks.append(loop.create_task(asyncio.sleep(0)))
            tasks[0].add_done_callback(_exit)
        case "loop_stop":
            loop.stop()
        case "thread":
            await asyncio.to_thread(time.sleep, 3600)
    while not (folder / "open").exists():  # noqa: ASYNC110  # the test opens it
        await asyncio.sleep(0.05)
